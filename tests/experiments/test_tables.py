"""The systems on a log of seconds: the grid, the tables, and that nothing is run twice."""

import contextlib
import csv
import dataclasses
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_runs import Flag

from ega_jax.baselines.cascade import cga, cross_dqn
from ega_jax.baselines.cascade.training import Cascade
from ega_jax.evaluation.comparison import METRICS, SERVED
from ega_jax.evaluation.report import read_results
from ega_jax.phases.auction import AuctionTraining
from ega_jax.reward import model
from ega_jax.systems import compared
from ega_jax.training.checkpoints import ConfigMismatchError, check_workdir, read_config
from ega_jax.types import organic_pois
from experiments import tables, tune
from experiments.common import runs, workdirs

FIGURES = dict.fromkeys(METRICS, 0.5)


def run_command(config, root, monkeypatch, seeds=("0",), only=None):
    """Runs the command as its flags would."""

    def open_workdir(kind, free):
        check_workdir(root / "run", config.to_dict(), free)
        return config, root / "run"

    monkeypatch.setattr(workdirs, "open_workdir", open_workdir)
    monkeypatch.setattr(tables, "_SEEDS", Flag(list(seeds)))
    monkeypatch.setattr(tables, "_ONLY", Flag(list(only or compared())))
    monkeypatch.setattr(tables, "_RESULTS", Flag(str(root / "results")))
    tables.main()


@pytest.fixture(scope="module")
def tabulated(finished, tmp_path_factory):
    """A run that finds EGA trained: config, and the folder of workdir and results."""
    config, workdir = finished
    root = tmp_path_factory.mktemp("tables")
    shutil.copytree(workdir, root / "run" / "seed-0")
    with pytest.MonkeyPatch.context() as patch:
        run_command(config, root, patch)
    return config, root


def read(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def test_all_systems_are_in_their_tables_with_every_metric(tabulated):
    _, root = tabulated
    for table, names in ({"table2": ("mca", "gr", "ega")} | tables.TABLES).items():
        rows = read(root / "results" / f"{table}.csv")
        assert [*rows[0]] == ["system", "scorer", "metric", "mean", "low", "high", "seeds"]
        expected = [(name, "model", metric) for name in names for metric in METRICS]
        assert [(r["system"], r["scorer"], r["metric"]) for r in rows] == expected
        for row in rows:
            assert row["seeds"] == "1"
            assert math.isnan(float(row["low"])), "one seed has no interval"
            if row["metric"] in SERVED:
                assert np.isfinite(float(row["mean"]))
    rows = read(root / "results" / "table3.csv")
    shown = {(row["system"], row["metric"]): row["mean"] for row in rows}
    assert shown["ega", "ctr_poi"] == shown["ega-gsp", "ctr_poi"], "the same slates"
    kept = read_config(root / "run" / "seed-0" / "systems" / "ega")
    assert kept["auction"]["rule"] != "gsp", "scoring it by another rule leaves a system its own"
    assert "| ega-gsp | model | 1 |" in (root / "results" / "tables.md").read_text()
    assert (root / "results" / "tables.png").stat().st_size > 0


def with_kappa(run, kappa):
    """The same training with another worth of clicks."""
    settings = run.settings.changed({"allocation.kappa": kappa})
    pretraining = dataclasses.replace(run.pretraining, settings=settings)
    return dataclasses.replace(run, pretraining=pretraining)


def test_the_auction_and_the_placement_are_taught_by_the_reward_model(tabulated, monkeypatch):
    config, root = tabulated
    monkeypatch.setattr(workdirs, "find_workdir", lambda: (config, root / "run" / "seed-0"))
    auction = runs.find_system("mca").system.cga
    run, views = with_kappa(runs.find_system("mca"), 3.0), {}
    cascade, train = Cascade(run), AuctionTraining.train_phase
    monkeypatch.setattr(
        cga, "cga_phase", lambda *_, view, kappa, **__: views.update(cga=view, kappa=kappa)
    )
    monkeypatch.setattr(cross_dqn, "cross_dqn_phase", lambda *_, **__: None)
    monkeypatch.setattr(
        AuctionTraining,
        "train_phase",
        lambda run, phase, *at: train(run, phase, *at) if phase else {},
    )
    _ = cascade.cross_dqn
    assert views["kappa"] == 3.0
    views["cross_dqn"] = cascade._queues(auction)
    batch = next(iter(run.sessions("align", 4, 4)))
    passed = jax.device_get(cascade._passed(batch))
    ranked = passed.ranked
    wanted = np.array([[0, 5, 3], [4, 1, -1], [2, 1, 4], [3, -1, -1]])
    there = [np.flatnonzero(row >= 0) for row in ranked.item]
    slates = np.array(
        [
            [places[i] if i >= 0 else -1 for i in row]
            for places, row in zip(there, wanted, strict=True)
        ]
    )

    @jax.jit
    def expected(params):
        history = batch["history_poi"], batch["history_creative"]
        request = *history, organic_pois(batch), batch.get("context")
        memory = model.encode(params, run.reward_config, run.items, *request)
        shown = (
            jnp.where(slates >= 0, jnp.take_along_axis(x, slates, axis=1), -1)
            for x in (ranked.item, ranked.creative, ranked.is_ad)
        )
        item, creative, is_ad = shown
        shown = item, creative, is_ad == 1
        return model.predict(params, run.reward_config, run.items, memory, *shown).click_poi

    judge = lambda name: jax.jit(lambda batch, slates: views[name](batch)[1](slates))
    judged = judge("cga")(batch, slates[:, None])[:, 0]
    np.testing.assert_allclose(judged, expected(run.reward), rtol=1e-5)
    turned = judge("cga")(batch, slates[:, None, ::-1])[:, 0, ::-1]
    several = (slates >= 0).sum(axis=1) > 1
    assert (jnp.abs(turned - judged).max(axis=1) > 1e-6)[several].all(), "the order counts"
    bid = np.where(slates >= 0, np.take_along_axis(passed.bid, slates, axis=1), 0)
    judged = judge("cross_dqn")(batch, slates)
    np.testing.assert_allclose(judged, (bid + 3.0) * expected(run.reward), rtol=1e-5)


def test_what_is_finished_is_never_repeated_nor_mixed(tabulated, monkeypatch, capsys):
    config, root = tabulated
    before = (root / "results" / "table2.csv").read_text()
    monkeypatch.setattr(tables, "run_system", lambda *_: pytest.fail("run again"))
    run_command(config, root, monkeypatch)
    count = len(compared())
    assert f"{count} of {count} runs finished" in capsys.readouterr().out
    assert (root / "results" / "table2.csv").read_text() == before
    config = config.changed({"payment.num_reports": 4})
    with pytest.raises(ConfigMismatchError, match=r"payment\.num_reports"):
        run_command(config, root, monkeypatch)


def test_a_seed_that_another_process_is_at_comes_last(finished, tmp_path, monkeypatch):
    order, taken = [], tmp_path / "run" / "seed-0" / "systems"

    @contextlib.contextmanager
    def other_process(folder, *, wait=True):
        yield wait or folder != taken

    monkeypatch.setattr(tables, "locked", other_process)
    monkeypatch.setattr(tables, "run_system", lambda *run: order.append(run[-2:]))
    monkeypatch.setattr(tables, "known", lambda _, *run: {"model": FIGURES} if run in order else {})
    run_command(finished[0], tmp_path, monkeypatch, seeds=("0", "1"))
    assert order == [(seed, name) for seed in (1, 0) for name in compared()]


@pytest.mark.slow
def test_trials_use_what_the_workdir_has(tabulated, monkeypatch, capsys):
    config, root = tabulated
    workdir = root / "run" / "seed-0"
    monkeypatch.setattr(workdirs, "find_workdir", lambda: (config, workdir))
    monkeypatch.setattr(
        tune, "TRIALS", {"gr": ({"alignment.num_steps": 1}, {"alignment.num_steps": 0})}
    )
    monkeypatch.setattr(tune, "_SYSTEMS", Flag(["gr"]))
    monkeypatch.setattr(tune, "_SESSIONS", Flag(4))
    tune.main()
    known = read_results(workdir)["tuning"]["4 sessions"]["gr"]
    assert set(known) == {"alignment.num_steps=1", "alignment.num_steps=0"}
    assert "alignment.num_steps=1" in capsys.readouterr().out
    monkeypatch.setattr(tune, "try_out", lambda *_: pytest.fail("tried again"))
    tune.main()
    monkeypatch.setattr(tune, "_SYSTEMS", Flag(["tiger"]))
    with pytest.raises(ValueError, match="no system tiger; there are gr"):
        tune.main()


def test_tables_without_learned_prices_are_refused(finished, tmp_path, monkeypatch):
    config = finished[0].changed({"auction.rule": "gsp"})
    with pytest.raises(ValueError, match=r"config\.auction\.rule: .* rate or threshold"):
        run_command(config, tmp_path, monkeypatch)


def test_runs_share_what_they_may():
    assert tables.folders_of(2, "ega-gsp") == tables.folders_of(2, "ega") == ("seed-2", "ega")
    assert tables.folders_of(0, "gr") == ("seed-0", "gr")
    assert tables.folders_of(1, "ega-mtp") == ("seed-1-ega-mtp", "ega-mtp")
