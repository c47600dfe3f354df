"""The record of a run: its figures and lifts are those of its outcomes, and it survives a file."""

import dataclasses
import math

import numpy as np
import pytest

from ega_jax.errors import UserError
from ega_jax.evaluation.records import LIFTS, Results, read_records, record_of, write_record
from ega_jax.evaluation.serving import Outcomes, figures_of

SESSIONS = 40


def outcomes(worth, clicks=0.4):
    """Random sessions; the same ones whatever the worth."""
    rng = np.random.default_rng(0)
    fields = {field.name: rng.uniform(1, 2, SESSIONS) for field in dataclasses.fields(Outcomes)}
    scale = {"value": worth, "paid": worth / 2, "clicks": clicks}
    return Outcomes(**{name: x * scale.get(name, 1.0) for name, x in fields.items()})


def results(worth, clicks=0.4, levers=()):
    by_judge = lambda *given: {judge: outcomes(*given) for judge in ("model", "truth")}
    return Results(
        value=by_judge(worth, clicks),
        rpm=by_judge(worth),
        psi={judge: {"psi": 0.1, "psi_paper": 0.2} for judge in ("model", "truth")},
        psi_sessions=7,
        frontier={("alpha", alpha): by_judge(*point) for alpha, point in levers},
        costs={"ms": 3.0},
    )


def test_a_record_holds_levels_lifts_and_frontier():
    own = results(4.0, 0.2, levers=[(1.0, (2.5, 0.4)), (2.0, (3.0, 0.3))])
    record = record_of(own, {"mca": results(2.0)})
    figures = figures_of(outcomes(4.0, 0.2))
    means = record["means"]["truth"]
    assert {name: means[name] for name in ("value", "ctr_poi")} == pytest.approx(
        {name: figures[name] for name in ("value", "ctr_poi")}
    )
    assert (means["psi"], means["psi_paper"], means["ms"]) == (0.1, 0.2, 3.0)
    lifts = record["lifts"]["truth"]
    assert lifts == pytest.approx(
        {"value_vs_mca": 100.0, "rpm_vs_mca": 100.0, "value_at_ctr_vs_mca": 25.0}
    )
    assert record["intervals"]["truth"]["value_vs_mca"] == pytest.approx((100.0, 100.0))
    assert [(p["lever"], p["setting"]) for p in record["frontier"]] == [("alpha", 1), ("alpha", 2)]
    assert record["frontier"][0]["truth"].keys() == {"value", "ctr_poi", "ad_share"}
    assert record["sessions"] == {"value": SESSIONS, "rpm": SESSIONS, "psi": 7}
    assert set(lifts) <= set(LIFTS)


def test_a_record_alone_has_no_lifts():
    assert record_of(results(4.0), {})["lifts"] == {"model": {}, "truth": {}}


def test_records_of_one_kind_of_data_are_read_back(tmp_path):
    runs = tmp_path / "runs"
    for number, kind in enumerate(["synthetic", "yelp", "synthetic"]):
        record = {"system": "ega", "market": number, "data": {"world": kind}}
        write_record(runs / f"{number}.json", record | {"means": {"psi": math.nan, "low": (1.0,)}})
    found = read_records(runs, {"world": "synthetic"})
    assert [record["market"] for record in found] == [0, 2]
    assert found[0]["means"] == {"psi": None, "low": [1.0]}
    assert read_records(tmp_path / "nothing", {}) == []
    write_record(runs / "copy.json", found[0])
    with pytest.raises(UserError, match=r"copy\.json and .*0\.json|0\.json and .*copy\.json"):
        read_records(runs, {"world": "synthetic"})
    (runs / "copy.json").write_text("[1]")
    with pytest.raises(UserError, match=r"copy\.json is no record of a run"):
        read_records(runs, {"world": "synthetic"})
    write_record(runs / "copy.json", {"trial": 1})
    with pytest.raises(UserError, match=r"copy\.json is no record of a run"):
        read_records(runs, {"world": "synthetic"})
