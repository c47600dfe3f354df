"""A system and a payment rule of one's own, each added in one place, through both commands."""

import csv
import shutil

import jax
import numpy as np
import pytest
from test_tables import run_command
from tiny_auction import align, copied
from toy_system import KIND, RULE, Toy

from ega_jax.auction.pricing import RULES
from ega_jax.evaluation.report import read_results
from ega_jax.mechanism import Mechanism
from ega_jax.phases.pretraining import Pretraining
from ega_jax.phases.requests import request_of
from ega_jax.systems import KINDS
from ega_jax.training.mesh import data_mesh


@pytest.fixture
def _added(monkeypatch):
    monkeypatch.setitem(KINDS, "toy", KIND)
    monkeypatch.setitem(RULES, RULE.name, RULE)


@pytest.mark.usefixtures("_added")
def test_one_entry_each_makes_a_system_and_a_rule(finished, tmp_path, monkeypatch):
    config, workdir = finished
    settings = config.changed(KIND.changes)
    align(settings, copied(workdir, tmp_path / "run"), system="toy")
    found = read_results(tmp_path / "run")["systems"]
    assert {"toy", "toy-gsp", "toy-first_price"} <= found.keys()
    half, full = (found[name]["model"]["rpm"] for name in ("toy", "toy-first_price"))
    np.testing.assert_allclose(half, full / 2, rtol=1e-5)

    mechanism = Mechanism.restore(tmp_path / "run", "toy")
    assert isinstance(mechanism.system, Toy)
    batch = next(iter(Pretraining(settings, tmp_path / "run", data_mesh()).batches("test")))
    request = jax.tree.map(lambda x: x[:2], request_of(batch))
    slate = mechanism.allocate(request)
    shown = slate.items[0].tolist()
    bid = dict(zip(request.item[0].tolist(), request.bid[0].tolist(), strict=True))
    expected = [bid[item] / 2 if item >= 0 else 0.0 for item in shown]
    np.testing.assert_allclose(slate.price_per_click[0], expected, rtol=1e-6)
    assert mechanism.explain(request, row=0).to_dict()[0]["contribution"] >= 0

    root = tmp_path / "tables"
    shutil.copytree(workdir, root / "run" / "market-0")
    run_command(config, root, monkeypatch, only=("toy",))
    with (root / "results" / "table2.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["system"] == "toy"]
    assert {row["metric"] for row in rows} >= {"rpm", "value", "psi"}
