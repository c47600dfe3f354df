"""From a pre-trained workdir to a priced auction: results, kills, devices, systems."""

import json
import re
import shutil
import signal

import chex
import jax
import numpy as np
import pytest
import tiny_auction
from absl.testing import flagsaver
from tiny_auction import PHASES, STEPS, align, copied, training
from tiny_runs import NUM_POIS, NUM_SLOTS, Flag, forkserver

from ega_jax.errors import UserError
from ega_jax.mechanism import Mechanism
from ega_jax.phases.requests import request_of
from ega_jax.setting import WORKDIR
from ega_jax.training.checkpoints import ConfigMismatchError, check_workdir, is_complete
from ega_jax.training.mesh import data_mesh
from ega_jax.training.metrics import read_metrics
from experiments import cold_start, evaluate, reward_control, sweep
from experiments.common import runs, workdirs

FIGURES = {"rpm", "ctr_poi", "ctr_img", "psi", "psi_10", "psi_fine", "psi_all", "ad_share"}
FIGURES |= {"psi_paper", "conversions", "surplus"}
KILLS = [("reward", 1), ("reward", 5), ("alignment", 3), ("payment_rate", 4)]
KILLS += [("payment_threshold", 1)]


def everything(config, workdir):
    """What the three phases have trained, on the host."""
    run = training(config, workdir)
    return jax.device_get((run.reward, run.system.decoder.params, run.networks))


def test_results_hold_the_keys_of_the_contract(finished):
    _, workdir = finished
    results = json.loads((workdir / "results.json").read_text())
    assert results["test"] == {"kept": 1}
    assert {f"{name}_poi" for name in ("auc", "logloss", "ece")} <= results["reward"].keys()
    others = {"ega-first_price", "ega-gsp", "ega-clarke", "ega-rate", "ega-truthful"}
    others |= {"ega-myerson", "ega-myerson_model", "ega-myerson_probed"}
    assert results["systems"].keys() == {"ega", *others}
    for name, system in results["systems"].items():
        assert system.keys() == {"model", "psi_floor", "non_monotone_share"}, "a log has no truth"
        assert system["model"].keys() >= FIGURES
        fine, ten = (system["model"][psi] for psi in ("psi_fine", "psi_10"))
        assert fine is None or fine >= ten, name  # Without utility any regret is infinite: null.
    assert results["systems"]["ega-truthful"]["model"]["psi_all"] < 1e-5
    assert results["auction_seconds"]["ega"] > 0
    for phase in runs.CURVES:
        assert (workdir / "systems" / "ega" / "figures" / f"{phase}.png").stat().st_size > 0


def test_every_phase_logs_every_step(finished):
    for phase, folder in PHASES.items():
        lines = read_metrics(finished[1] / folder / "metrics" / f"{phase}.jsonl")
        assert [line["step"] for line in lines] == list(range(1, STEPS + 1)), phase
        assert len({line["loss"] for line in lines}) > 1, phase
    assert {"revenue", "regret", "multiplier"} <= lines[0].keys()


@pytest.mark.slow
def test_killed_and_resumed_is_as_never_stopped(finished, tmp_path):
    config, workdir = finished
    copied(workdir, tmp_path)
    context = forkserver()
    for phase, step in KILLS:
        arguments = (config, str(tmp_path), phase, step)
        process = context.Process(target=tiny_auction.train_and_die, args=arguments)
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (phase, step)
    assert is_complete(tmp_path / "systems" / "ega" / "tables" / "payment")
    chex.assert_trees_all_equal(everything(config, tmp_path), everything(config, workdir))


@pytest.mark.slow
def test_a_table_without_probes_is_kept(finished, tmp_path):
    """What has no entries cannot be saved, and is there again when the table is restored."""
    config, workdir = finished
    copied(workdir, tmp_path)
    bare = config.changed({"payment.probes": ()})
    made = training(bare, tmp_path).table
    assert made["misreports_reach"].size == 0
    chex.assert_trees_all_equal(training(bare, tmp_path).table, made)
    assert training(bare, tmp_path).networks.keys() == {"rate", "threshold"}


@pytest.mark.slow
def test_reward_and_payment_on_four_devices_give_the_losses_of_one(finished, tmp_path):
    """Generator and table of the four, so that both train on the same."""
    config, workdir = finished
    copied(workdir, tmp_path)
    for name in ("checkpoints/alignment", "tables"):
        shutil.copytree(workdir / "systems" / "ega" / name, tmp_path / "systems" / "ega" / name)
    alone = training(config, tmp_path, data_mesh(jax.devices()[:1]))
    assert data_mesh().size == 4
    assert alone.networks
    for phase in ("reward", "payment_rate", "payment_threshold"):
        one, four = (
            read_metrics(w / PHASES[phase] / "metrics" / f"{phase}.jsonl")
            for w in (tmp_path, workdir)
        )
        losses = [[line["loss"] for line in lines] for lines in (one, four)]
        assert len(losses[0]) == STEPS
        np.testing.assert_allclose(*losses, rtol=2e-3, atol=1e-5, err_msg=phase)


def test_the_restored_mechanism_serves_what_was_trained(finished):
    config, workdir = finished
    mechanism, run = Mechanism.restore(workdir), training(config, workdir)
    chex.assert_trees_all_equal(mechanism.system.decoder.params, run.system.decoder.params)
    chex.assert_trees_all_equal(mechanism.networks, run.networks)
    batch = next(iter(run.sessions("test", 2, 2)))
    for rule in mechanism.choices:
        slate = mechanism.allocate(request_of(batch), rule)
        assert slate.items.shape == (2, NUM_SLOTS)
        for row, items in enumerate(np.asarray(slate.items)):
            bid_of = dict(zip(batch["item"][row].tolist(), batch["bid"][row].tolist(), strict=True))
            for slot, item in enumerate(items.tolist()):
                assert 0 <= slate.price_per_click[row, slot] <= bid_of[item]
    assert mechanism.rule == config.auction.rule


def test_reserves_need_the_past_bids_of_books(finished):
    config, workdir = finished
    with pytest.raises(UserError, match="the log has no books"):
        _ = training(config.changed({"auction.reserves": "monopoly"}), workdir).reserves


def test_evaluate_scores_a_saved_system_on_any_split(finished, monkeypatch, capsys):
    config, workdir = finished
    before = json.loads((workdir / "results.json").read_text())
    monkeypatch.setattr(workdirs, "find_workdir", lambda: (config, workdir))
    for split in ("test", "align"):
        monkeypatch.setattr(evaluate, "_SPLIT", Flag(split))
        with flagsaver.flagsaver(system="ega"):
            evaluate.main()
    after = json.loads((workdir / "results.json").read_text())
    assert after["test"].pop("systems") == before["systems"]
    assert after.pop("align")["systems"].keys() == before["systems"].keys()
    assert after == before
    assert "ega-myerson" in capsys.readouterr().out
    monkeypatch.setattr(evaluate, "_NUM_BEAMS", Flag(8))
    refused = pytest.raises(ValueError, match="num_beams: a system is measured with")
    with flagsaver.flagsaver(system="ega"), refused:
        evaluate.main()


def test_a_sweep_serves_each_point_once(finished, monkeypatch):
    config, workdir = finished
    monkeypatch.setattr(workdirs, "find_workdir", lambda: (config, workdir))
    settings = {"ALPHAS": [], "BETAS": ["0", "8"], "RULE": "gsp", "SESSIONS": 4}
    for name, value in settings.items():
        monkeypatch.setattr(sweep, f"_{name}", Flag(value))
    points = []
    served = lambda *args, **levers: points.append(levers) or real(*args, **levers)
    real = sweep.served
    monkeypatch.setattr(sweep, "served", served)
    for _ in range(2):
        sweep.main()
    assert points == [{"beta": 0.0}, {"beta": 8.0}]
    place = json.loads((workdir / "results.json").read_text())["sweep"]["ega"]["gsp, 4 sessions"]
    for figures in place["beta"].values():
        assert figures.keys() == {"model"}, "a log has no truth"
        assert 0 <= figures["model"]["rpm"] <= figures["model"]["value"]
        assert 0 < figures["model"]["ctr_poi"] < 1
    assert place["beta"]["0"]["model"]["ad_share"] >= place["beta"]["8"]["model"]["ad_share"]
    assert (workdir / "systems" / "ega" / "figures" / "sweep-gsp.png").stat().st_size > 0


@pytest.mark.parametrize(
    ("flag", "values", "message"),
    [
        ("ALPHAS", ["x"], "alpha: 'x' is not a number"),
        ("ALPHAS", ["0"], "config.allocation.alpha is 0.0: it must be above 0"),
        ("BEAMS", ["1.5"], "beams: '1.5' is not a whole number"),
        ("CODES", ["1"], "config.tokenizer.num_codes is 1: it must be at least 2"),
        ("BETAS", [], "no point is asked for"),
    ],
)
def test_points_that_cannot_be_served_are_named_first(finished, monkeypatch, flag, values, message):
    monkeypatch.setattr(workdirs, "find_workdir", lambda: finished)
    for name in ("ALPHAS", "BETAS", "BEAMS", "SLOTS", "LAYERS", "CODES"):
        monkeypatch.setattr(sweep, f"_{name}", Flag(values if name == flag else []))
    monkeypatch.setattr(sweep, "_RULE", Flag("gsp"))
    monkeypatch.setattr(sweep, "_SESSIONS", Flag(3))
    monkeypatch.setattr(sweep, "serve", lambda *_: pytest.fail("served"))
    with pytest.raises(ValueError, match=re.escape(message)):
        sweep.main()


def test_a_system_that_is_half_trained_is_not_measured(finished, tmp_path):
    _, workdir = finished
    with pytest.raises(FileNotFoundError, match="holds no system 'ega', but none"):
        runs.find_system(tmp_path, "ega")
    (tmp_path / "systems").mkdir()
    shutil.copytree(workdir / "systems" / "ega", tmp_path / "systems" / "ega")
    with pytest.raises(FileNotFoundError, match="holds no system 'mca', but ega"):
        runs.find_system(tmp_path, "mca")
    with pytest.raises(FileNotFoundError, match="ega is not trained to its end"):
        runs.find_system(tmp_path, "ega")


def test_one_kind_of_system_does_not_get_the_name_of_another(finished):
    config, workdir = finished
    with pytest.raises(ValueError, match=r"--system=mca .* kind ega.*auction\.system=mca"):
        align(config, workdir, "mca")
    assert not (workdir / "systems" / "mca").exists()


@pytest.mark.parametrize("rule", ["gsp", "truthful", "myerson_model"])
def test_no_system_gets_the_name_of_anothers_prices(finished, rule):
    config, workdir = finished
    with pytest.raises(ValueError, match=f"ega at the prices of {rule}"):
        align(config, workdir, f"ega-{rule}")
    assert not (workdir / "systems" / f"ega-{rule}").exists()


@pytest.mark.slow
def test_a_sweep_trains_other_sizes_in_workdirs_of_their_own(finished, monkeypatch):
    config, workdir = finished
    monkeypatch.setattr(workdirs, "find_workdir", lambda: (config, workdir))
    for name in ("ALPHAS", "BETAS", "SLOTS", "CODES"):
        monkeypatch.setattr(sweep, f"_{name}", Flag([]))
    monkeypatch.setattr(sweep, "_BEAMS", Flag(["2"]))
    monkeypatch.setattr(sweep, "_LAYERS", Flag(["2"]))
    monkeypatch.setattr(sweep, "_SESSIONS", Flag(4))
    monkeypatch.setattr(sweep, "_RULE", Flag("threshold"))
    with pytest.raises(ValueError, match=r"not trained again for other .*--rule=gsp"):
        sweep.main()
    monkeypatch.setattr(sweep, "_RULE", Flag("gsp"))
    before = (workdir / "config.json").read_bytes()
    sweep.main()
    own = json.loads((workdir / "sweep" / "layers-2" / "config.json").read_text())
    assert own["tokenizer"]["num_layers"] == 2
    assert (workdir / "config.json").read_bytes() == before
    place = json.loads((workdir / "results.json").read_text())["sweep"]["ega"]["gsp, 4 sessions"]
    for setting in ("layers", "beams"):
        assert 0 < place[setting]["2"]["model"]["ctr_poi"] < 1
    written = (workdir / "systems" / "ega" / "figures" / "sweep-gsp.csv").read_text().splitlines()
    points = [line.split(",")[:3] for line in written]
    assert points[0] == ["setting", "at", "judge"]
    assert points[-2:] == [["beams", "2", "model"], ["layers", "2", "model"]]
    monkeypatch.setattr(sweep, "retrained", lambda *_: pytest.fail("trained again"))
    sweep.main()
    monkeypatch.setattr(sweep, "_SLOTS", Flag(["4"]))
    with pytest.raises(ValueError, match="take the embedded market"):
        sweep.main()


@pytest.mark.slow
def test_the_reward_model_and_its_control_are_trained_once_a_seed(finished, monkeypatch, capsys):
    config, workdir = finished
    monkeypatch.setattr(workdirs, "find_workdir", lambda: (config, workdir))
    monkeypatch.setattr(reward_control, "_SEEDS", Flag(2))
    reward_control.main()
    known = json.loads((workdir / "results.json").read_text())["reward_control"]
    assert known["slate"].keys() == known["pointwise"].keys() == {"0", "1"}
    losses = [found["logloss_poi"] for kind in known.values() for found in kind.values()]
    assert len(set(losses)) == 4, "kind and seed both matter"
    own = json.loads((workdir / "reward_control" / "pointwise-1" / "config.json").read_text())
    assert own["reward"]["permutation_aware"] is False
    assert "logloss_poi" in capsys.readouterr().out
    monkeypatch.setattr(reward_control, "measure", lambda *_: pytest.fail("trained again"))
    reward_control.main()


def test_rankers_of_new_ads_read_ids_codes_or_features(finished, monkeypatch, capsys):
    config, workdir = finished
    seen = np.arange(NUM_POIS) % 3 > 0
    monkeypatch.setattr(workdirs, "find_workdir", lambda: (config, workdir))
    monkeypatch.setattr(cold_start, "seen_pois", lambda _: seen)
    monkeypatch.setattr(cold_start, "_SEEDS", Flag(1))
    cold_start.main()
    known = json.loads((workdir / "results.json").read_text())["cold_start, 8192 sessions"]
    assert known.keys() == set(cold_start.FORMS)
    assert {form["0"]["clicks_new"] for form in known.values()} != {0}
    assert "recall@10" in capsys.readouterr().out
    run = training(config, workdir)
    items, sizes = cold_start.in_form(run, ~seen, "ids")
    codes = np.asarray(items.catalogue.poi_codes)[:, 0]
    assert set(codes[~seen]) == {0}
    assert len(set(codes[seen])) == seen.sum()
    assert max(codes.max(), items.catalogue.creative_codes.max()) < sizes.num_codes
    monkeypatch.setattr(cold_start, "measure", lambda *_: pytest.fail("trained again"))
    cold_start.main()
    monkeypatch.setattr(cold_start, "seen_pois", lambda _: np.full(NUM_POIS, True))
    with pytest.raises(UserError, match="no new ones"):
        cold_start.main()


def files_of(folder):
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.mark.slow
def test_a_changed_field_is_refused_in_its_system_and_welcome_in_another(finished):
    config, workdir = finished
    changed = config.changed({"alignment.num_steps": 0, "allocation.beta": 9.0})
    before = files_of(workdir / "systems" / "ega")
    with pytest.raises(ConfigMismatchError) as caught:
        align(changed, workdir)
    assert "allocation.beta: found 2.0, expected 9.0" in str(caught.value)
    assert "alignment.num_steps: found 6, expected 0" in str(caught.value)
    assert str(workdir / "systems" / "ega") in str(caught.value)
    assert files_of(workdir / "systems" / "ega") == before
    rewards = files_of(workdir / "reward" / "checkpoints")
    align(changed, workdir, "calm")
    assert files_of(workdir / "reward" / "checkpoints") == rewards, "shared by all systems"
    results = json.loads((workdir / "results.json").read_text())["systems"]
    assert {"ega", "calm", "calm-gsp", "calm-truthful"} <= results.keys()
    calm = Mechanism.restore(workdir, "calm")
    assert calm.levers.beta == 9
    unaligned = training(config, workdir).pretraining.restore_generator()
    chex.assert_trees_all_equal(calm.system.decoder.params, unaligned)
    check_workdir(workdir, config.to_dict(), config.free(WORKDIR))
