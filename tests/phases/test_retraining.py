"""The reward model learns from what users do on the system's own slates."""

import dataclasses
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from tiny_auction import copied, training

from ega_jax.data.market.clicks import Responses
from ega_jax.errors import UserError
from ega_jax.phases import retraining
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.requests import request_of, without_blanks
from ega_jax.phases.retraining import answered
from ega_jax.training.checkpoints import is_complete
from experiments.configs import market

EAGER, RARE = 0.95, 0.3
PLAIN = {"auction.rule": "first_price", "payment.probes": ()}


class Users(SimpleNamespace):
    """Users who click nearly every POI, and some of its images."""

    def responses(self, session, items, creatives, is_ad):
        same = lambda chance: np.where(items >= 0, np.float32(chance), 0.0)
        return Responses(click_poi=same(EAGER), click_image=same(RARE), convert=same(RARE))


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
        patch.setattr(AuctionTraining, "truth", Users())
        patch.setattr(retraining, "SERVED_AT_ONCE", 8)
        found = training(retrained(config), workdir)
        assert found.mechanism
        yield found


def test_click_rates_on_own_slates_become_those_of_the_users(run):
    (batch,) = run.sessions("align", 6, 8)
    served, real = without_blanks(batch)
    before = dataclasses.replace(run.system, reward=run.reward)
    rates = [
        dataclasses.replace(run.mechanism, system=system).allocate(request_of(served)).pctr[real]
        for system in (before, run.system)
    ]
    assert rates[0].mean() < 0.5 < 0.65 < rates[1].mean(), rates


def test_a_finished_retraining_is_restored(run):
    folder = run.pretraining.workdir
    assert is_complete(folder / "systems" / "ega" / "tables" / "traffic")
    again = training(run.settings, folder).system
    jax.tree.map(np.testing.assert_array_equal, again.reward, run.system.reward)


def test_answers_are_drawn_as_often_as_they_are_likely(run):
    (batch,) = run.sessions("align", 6, 8)  # Two of its rows are blank.
    drawn = [answered(run.mechanism, batch, Users(), jax.random.key(n)) for n in range(100)]
    rows = {name: np.concatenate([each[name] for each in drawn]) for name in drawn[0]}
    assert len(rows["shown_poi"]) == 600
    shown = rows["shown_poi"] >= 0
    mean = lambda name, where: rows[name][where].mean()
    assert mean("click_poi", shown) == pytest.approx(EAGER, abs=0.02)
    assert mean("click_image", shown) == pytest.approx(RARE, abs=0.04)
    assert mean("convert", rows["click_poi"]) == pytest.approx(RARE, abs=0.04)
    assert not rows["convert"][~rows["click_poi"]].any()
    assert not rows["click_poi"][~shown].any()


def test_a_log_has_no_users_who_answer(finished, tmp_path, monkeypatch):
    config, workdir = finished
    monkeypatch.setattr(AuctionTraining, "truth", None)
    with pytest.raises(UserError, match="no simulated users"):
        _ = training(retrained(config), copied(workdir, tmp_path)).system


def test_own_slates_cannot_be_weighed():
    weighed = {"reward.propensity_weight": 0.5, "retraining.num_sessions": 8}
    with pytest.raises(UserError, match="own slates have no propensity"):
        market.settings("tiny").changed(weighed)
