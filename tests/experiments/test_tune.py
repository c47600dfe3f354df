"""The trials: as many for each system, of fields that exist, the winner by the model alone."""

import pytest

from experiments import tune
from experiments.configs import market
from experiments.tables import changed

BEST_BY_TRUTH = {
    "as configured": {"model": {"bid_rpm": 3.0}, "truth": {"bid_rpm": 9.0}},
    "one_rec.strength=0.5": {"model": {"bid_rpm": 4.0}, "truth": {"bid_rpm": 1.0}},
}


def test_each_system_has_as_many_trials():
    assert {len(trials) for trials in tune.TRIALS.values()} == {4}
    for trials in tune.TRIALS.values():
        titles = [tune.title_of(trial) for trial in trials]
        assert titles[0] == "as configured"
        assert len(set(titles)) == len(titles)


@pytest.mark.parametrize("variant", ["tiny", "small"])
def test_trials_change_fields_that_exist(variant):
    config = market.get_config(variant).to_dict()
    for trials in tune.TRIALS.values():
        for trial in trials[1:]:
            assert changed(config, trial) != config


def test_the_model_alone_says_which_is_best(capsys):
    tune.print_trials(BEST_BY_TRUTH, "gr")
    marked = [line for line in capsys.readouterr().out.splitlines() if "*" in line]
    assert len(marked) == 1
    assert "one_rec.strength=0.5" in marked[0]
