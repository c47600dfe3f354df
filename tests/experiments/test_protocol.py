"""The protocol from end to end: all systems on two markets of the smallest size."""

import csv
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ega_jax.systems import compared
from experiments.common.measuring import FRONTIER

ROOT = Path(__file__).parents[2]
SHORT = (  # Groups of settings whose training is cut short.
    *("training", "reward", "payment"),
    *(f"cascade.{name}" for name in ("tiger", "two_tower", "hstu", "peri_cr", "cga", "cross_dqn")),
)
NUM_STEPS = 120
SESSIONS = {"value": 128, "rpm": 64, "psi": 8}


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open() as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_all_systems_are_compared_on_two_markets(tmp_path):
    results = tmp_path / "results"
    steps = [f"--config.{group}.num_steps={NUM_STEPS}" for group in SHORT]
    steps += ["--config.payment.num_sessions=64"]
    sessions = [f"--{part}_sessions={number}" for part, number in SESSIONS.items()]
    places = [f"--workdir={tmp_path / 'run'}", f"--results={results}"]
    config = "--config=experiments/configs/market.py:tiny"
    command = [sys.executable, "-m", "experiments.tables", config, "--markets=0,1"]
    subprocess.run([*command, *places, *steps, *sessions], cwd=ROOT, check=True)
    records = {path.stem for path in (results / "runs").iterdir()}
    assert records == {f"market-tiny-{n}-{name}" for n in (0, 1) for name in compared()}
    rows = rows_of(results / "table2.csv") + rows_of(results / "table3.csv")
    assert {row["system"] for row in rows} == set(compared())
    for row in rows:
        assert row["markets"] == "2", row
        if row["metric"] in ("value_vs_mca", "value_vs_gr", "rpm_vs_mca"):
            low, mean, high = (float(row[name]) for name in ("low", "mean", "high"))
            assert low < mean < high, row
        if row["metric"] == "value":
            assert int(row["sessions"]) >= SESSIONS["value"]
    points = [row for row in rows_of(results / "frontier.csv") if row["system"] == "ega"]
    assert {row["market"] for row in points} == {"0", "1"}
    for lever, settings in FRONTIER.items():
        found = {float(row["setting"]) for row in points if row["lever"] == lever}
        assert found == set(settings)
    ctr_poi = np.array([float(row["ctr_poi"]) for row in points])
    assert np.all((ctr_poi > 0) & (ctr_poi < 1))
    assert (results / "lifts.png").stat().st_size > 0
