"""The reward model learns from what users do on the system's own slates."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_auction import copied, training

from ega_jax.data.market.simulation import Feedback
from ega_jax.errors import UserError
from ega_jax.phases import retraining
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.requests import request_of, without_blanks
from ega_jax.phases.retraining import answered
from ega_jax.training.checkpoints import is_complete
from experiments.configs import market

EAGER, RARE = 0.95, 0.3
PLAIN = {"auction.rule": "first_price", "payment.probes": ()}


class EagerUsers(SimpleNamespace):
    """Users who click nearly every POI, and some of its images."""

    def answer(self, key, session, items, creatives, is_ad):
        draws = jax.random.uniform(key, (3, *items.shape))
        clicked = (draws[0] < EAGER) & (items >= 0)
        return Feedback(clicked, (draws[1] < RARE) & (items >= 0), clicked & (draws[2] < RARE))


def retrained(config, **more):
    own = {"num_sessions": 6, "num_steps": 40, "batch_size": 4, "learning_rate": 3e-2}
    own |= {"warmup_steps": 0, "evaluate_every": 0, **more}
    return config.changed({f"retraining.{name}": value for name, value in own.items()})


@pytest.fixture(scope="module")
def run(finished, tmp_path_factory):
    """EGA whose reward model was trained further on sessions that it served, eight at a time."""
    config = finished[0].changed({"alignment.num_steps": 0, "payment.heads": ()} | PLAIN)
    workdir = copied(finished[1], tmp_path_factory.mktemp("retraining"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(AuctionTraining, "users", EagerUsers())
        patch.setattr(retraining, "SERVED_AT_ONCE", 8)
        found = training(retrained(config), workdir)
        assert found.mechanism
    return found


def test_click_rates_on_own_slates_become_those_of_the_users(run):
    (batch,) = run.sessions("align", 6, 8)
    served, real = without_blanks(batch)
    before = dataclasses.replace(run.system, reward=run.reward)
    rates = [
        dataclasses.replace(run.mechanism, system=system).allocate(request_of(served)).pctr[real]
        for system in (before, run.system)
    ]
    assert rates[0].mean() < 0.5 < 0.65 < rates[1].mean(), rates


def test_a_finished_retraining_is_restored(run, monkeypatch):
    folder = run.pretraining.workdir
    assert is_complete(folder / "systems" / "ega" / "tables" / "traffic")
    monkeypatch.setattr(AuctionTraining, "users", EagerUsers())
    monkeypatch.setattr(retraining, "SERVED_AT_ONCE", 8)
    again = training(run.settings, folder).system
    jax.tree.map(np.testing.assert_array_equal, again.reward, run.system.reward)


def test_traffic_holds_the_requests_served_and_what_users_did(run):
    (batch,) = run.sessions("align", 6, 8)  # Two of its rows are blank.
    rows = answered(run.mechanism, batch, EagerUsers(), jax.random.key(0))
    slates = run.mechanism.allocate(request_of(without_blanks(batch)[0]), "first_price")
    np.testing.assert_array_equal(rows["shown_poi"], slates.items[:6])
    for name in ("history_poi", "item", "bid"):
        np.testing.assert_array_equal(rows[name], batch[name][:6])
    assert rows["click_poi"].mean() > 0.5
    assert {len(column) for column in rows.values()} == {6}


def test_a_log_has_no_users_who_answer(finished):
    config, workdir = finished
    with pytest.raises(UserError, match="nobody answers"):
        _ = training(retrained(config), workdir).system


def test_own_slates_cannot_be_weighed():
    weighed = {"reward.propensity_weight": 0.5, "retraining.num_sessions": 8}
    with pytest.raises(UserError, match="own slates have no propensity"):
        market.settings("tiny").changed(weighed)
