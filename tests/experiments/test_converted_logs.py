"""Public logs without histories and creatives, through all commands to a mechanism."""

import json
import subprocess
import sys
import zipfile

import jax
import numpy as np
import public_logs
import pytest
import tiny_auction
from tiny_runs import Flag, tiny_config

from ega_jax.data.convert.ad_log import convert_log
from ega_jax.data.convert.auction_net import auction_net
from ega_jax.data.convert.open_bandit import open_bandit
from ega_jax.evaluation.report import read_results
from ega_jax.mechanism import Mechanism
from ega_jax.phases.pretraining import Pretraining, _warn
from ega_jax.phases.requests import request_of
from ega_jax.systems import KINDS
from ega_jax.training.mesh import data_mesh
from experiments import evaluate, sweep
from experiments.common import runs, workdirs

CAMPAIGNS = {"all": 80, "men": 34, "women": 46}  # Items of each.


def converted(source, folder):
    """A small log in the ad-log format."""
    folder.mkdir()
    if source is open_bandit:
        log, items = public_logs.write_bandit(folder)
        convert_log(open_bandit, [log], items, folder / "log")
    else:
        logs = public_logs.write_auction(folder, num_requests=30)
        convert_log(auction_net, logs, None, folder / "log")
    return folder / "log"


def pretrained(source, root):
    """The settings and the workdir of a tiny generator."""
    folder = converted(source, root / "raw")
    config = tiny_config(folder, kind="kmeans", **tiny_auction.TINY)
    runs.pretrain(Pretraining(config, root / "run", data_mesh()))
    return config, root / "run"


def test_a_generator_learns_and_what_it_cannot_is_told(tmp_path, capsys):
    _warn.cache_clear()
    _, workdir = pretrained(open_bandit, tmp_path)
    told = capsys.readouterr().err
    for words in ("every history is empty", "the log has no creatives", "slates have one slot"):
        assert told.count(words) == 1, words
    assert f"warning: {tmp_path / 'raw' / 'log'}: " in told
    results = read_results(workdir)
    assert results["tokenizer"].keys() == {"poi", "creative"}
    assert all(np.isfinite(value) for value in results["test"].values())


@pytest.mark.slow
@pytest.mark.parametrize("source", [open_bandit, auction_net])
def test_an_auction_is_trained_measured_and_served(source, tmp_path, monkeypatch):
    config, workdir = pretrained(source, tmp_path)
    tiny_auction.align(config, workdir)
    found = json.loads((workdir / "results.json").read_text())["systems"]["ega"]["model"]
    assert found["ctr_poi"] > 0
    assert found["ad_share"] == 1
    monkeypatch.setattr(workdirs, "find_workdir", lambda: (config, workdir))
    monkeypatch.setattr(evaluate, "_SPLIT", Flag("align"))
    evaluate.main()
    for name, values in {"ALPHAS": ["1.2"], "BETAS": ["2"]}.items():
        monkeypatch.setattr(sweep, f"_{name}", Flag(values))
    monkeypatch.setattr(sweep, "_SESSIONS", Flag(4))
    sweep.main()

    run = tiny_auction.training(config, workdir)
    batch = next(iter(run.sessions("test", 2, 2)))
    slate = Mechanism.restore(workdir).allocate(request_of(batch))
    np.testing.assert_array_equal(slate.creatives, slate.items)
    bids = {row: dict(zip(batch["item"][row], batch["bid"][row], strict=True)) for row in (0, 1)}
    for (row, slot), item in np.ndenumerate(np.asarray(slate.items)):
        assert slate.is_ad[row, slot] == (item >= 0)
        assert 0 <= slate.price_per_click[row, slot] <= bids[row].get(item, 0.0) * (1 + 1e-6)


@pytest.mark.slow
@pytest.mark.parametrize("system", ["mca", "gr"])
def test_other_systems_take_such_a_log(system, tmp_path):
    config, workdir = pretrained(open_bandit, tmp_path)
    tiny_auction.align(
        config.changed(KINDS[system].changes | {"cascade.cross_dqn.screen": 1}), workdir, system
    )
    assert read_results(workdir)["systems"][system]["model"]["ctr_poi"] > 0


@pytest.fixture(scope="module")
def open_bandit_logs(tmp_path_factory):
    """The folder with the logs of `obp` 0.4.1, if the package can be downloaded."""
    folder = tmp_path_factory.mktemp("obp")
    command = [sys.executable, "-m", "pip", "download", "obp==0.4.1", "--no-deps", "-q"]
    done = subprocess.run([*command, "--dest", folder], capture_output=True, check=False)
    if done.returncode:
        pytest.skip("obp 0.4.1 cannot be downloaded")
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / "obp" / "dataset" / "obd"


@pytest.mark.slow
@pytest.mark.parametrize("campaign", CAMPAIGNS)
@pytest.mark.parametrize("policy", ["random", "bts"])
def test_the_real_logs_are_converted(open_bandit_logs, tmp_path, policy, campaign):
    folder = open_bandit_logs / policy / campaign
    files = [folder / f"{campaign}.csv"], folder / "item_context.csv"
    summary = convert_log(open_bandit, [files[0]], files[1], tmp_path / "log").summary
    assert (summary.num_rows, summary.num_items) == (10_000, CAMPAIGNS[campaign])
    dataset = Pretraining(
        tiny_config(tmp_path / "log"), tmp_path / "run", data_mesh(jax.devices()[:1])
    ).ad_log
    (propensity,) = dataset.recorded_in("test", "propensity")
    if policy == "random":
        np.testing.assert_allclose(propensity, 1 / CAMPAIGNS[campaign], rtol=1e-5)
    else:
        assert propensity.min() < 0.5 / CAMPAIGNS[campaign]
