"""A payment rule is one entry of a table: it is served, explained to judges and scored."""

import numpy as np
import pytest
from tiny_models import LEVERS, batch_of, levers, random_requests, tiny_ega, with_beams

from ega_jax.auction.pricing import RULES, PricingConfig, Rule
from ega_jax.errors import UserError
from ega_jax.evaluation.auction import judge, scores
from ega_jax.mechanism import Mechanism

B = 6
REQUESTS = random_requests(11, B)


def mechanism():
    """With the rules that the table holds now."""
    pricing = PricingConfig(heads=(), probes=())
    return Mechanism(with_beams(tiny_ega(), 4), {}, pricing, LEVERS, pricing.rules[-1])


@pytest.fixture
def half(monkeypatch):
    """A mechanism that charges half of the bid."""
    monkeypatch.setitem(RULES, "half", Rule("half", lambda slate: 0.5 * slate.bid))
    return mechanism()


def test_a_rule_of_the_table_is_served(half):
    assert half.choices == ("first_price", "gsp", "clarke", "half", "truthful")
    assert half.rule == "half"
    bids = half.allocate(REQUESTS, "first_price").price_per_click
    found = half.allocate(REQUESTS)
    np.testing.assert_array_equal(found.price_per_click, 0.5 * bids)
    assert (bids[found.is_ad] > 0).all()
    assert found.is_ad.any()
    bids = half.allocate(REQUESTS, "first_price", reserve=0.8).price_per_click
    found = half.allocate(REQUESTS, reserve=0.8)
    assert found.is_ad.any()
    expected = np.where(found.is_ad, np.maximum(0.5 * bids, np.float32(0.8)), 0.0)
    np.testing.assert_array_equal(found.price_per_click, expected)


def test_a_rule_of_the_table_is_judged(half):
    batch = batch_of(REQUESTS, session=np.arange(B))
    found = judge(half, levers(), [batch], None, 1)["model"]
    np.testing.assert_array_equal(found.price["half"], 0.5 * found.price["first_price"])
    shown = found.clicks > 0
    assert shown.any()
    np.testing.assert_array_equal(found.charge["half"][shown], 0.5 * found.bid[shown])
    rpm = {rule: scores(found, rule)["rpm"] for rule in ("half", "first_price")}
    assert rpm["half"] == pytest.approx(rpm["first_price"] / 2)
    assert rpm["half"] > 0


def test_without_its_entry_there_is_no_such_rule():
    with pytest.raises(UserError, match="'half' is not one of first_price, gsp, clarke, truthful"):
        mechanism().allocate(REQUESTS, "half")
