"""The trials: as many for each system, of fields that exist, the winner by the model alone."""

import pytest

from ega_jax.errors import UserError
from experiments import tune
from experiments.common.runs import changed
from experiments.configs import market

BEST_BY_TRUTH = {
    "one_rec.strength=0.1": {"model": {"value": 3.0}, "truth": {"value": 9.0}},
    "one_rec.strength=0.5": {"model": {"value": 4.0}, "truth": {"value": 1.0}},
}


def test_each_system_has_as_many_trials():
    assert {len(trials) for trials in tune.TRIALS.values()} == {4}
    for trials in tune.TRIALS.values():
        assert len({tune.title_of(trial) for trial in trials}) == len(trials)


def test_trials_change_fields_that_exist():
    config = market.settings("tiny")
    for trials in tune.TRIALS.values():
        found = [changed(config, trial) for trial in trials]
        assert len(set(found)) == len(trials)


def test_a_change_of_no_field_is_refused():
    with pytest.raises(UserError, match=r"no config field config\.cascade\.num_recaled; valid"):
        changed(market.settings("tiny"), {"cascade.num_recaled": 4})


def test_the_model_alone_says_which_is_best(capsys):
    tune.print_trials(BEST_BY_TRUTH, "gr")
    marked = [line for line in capsys.readouterr().out.splitlines() if "*" in line]
    assert len(marked) == 1
    assert "one_rec.strength=0.5" in marked[0]
