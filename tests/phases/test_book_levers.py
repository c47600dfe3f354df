"""Levers that a log's books do not serve are refused before anything is trained."""

import dataclasses
import types

import pytest
from tiny_models import levers

from ega_jax.errors import UserError
from ega_jax.phases.ega import ega_with


@dataclasses.dataclass
class Untrained:
    """A training whose models may not be asked for."""

    levers: object
    token_bid: str = "max"

    def book(self, levers):
        return types.SimpleNamespace(smoothing=float(levers.bid_free))

    @property
    def settings(self):
        return types.SimpleNamespace(allocation=types.SimpleNamespace(token_bid=self.token_bid))

    @property
    def reward(self):
        pytest.fail("trained")


@pytest.mark.parametrize(("bid_free", "token_bid"), [(True, "max"), (False, "mean")])
def test_a_reserve_needs_an_order_of_bids(bid_free, token_bid):
    run = Untrained(levers(bid_free=bid_free, reserve=5.0), token_bid)
    with pytest.raises(UserError, match=r"reserve is 5\.0: without an order of bids"):
        ega_with(run, {})
