"""The paper's claims: their lifts over markets, and what runs say of them."""

import numpy as np
import pytest

from ega_jax.evaluation.claims import COMPARED, METRICS, PAPER, claim_rows, claims_markdown


def record(system, market, rpm, scorers=("model", "truth"), **others):
    means = dict.fromkeys(METRICS, 1.0) | {"rpm": rpm} | others
    return {"system": system, "market": market, "means": dict.fromkeys(scorers, means)}


def verdict(ega, mca):
    """The row by the truth of EGA and MCA with these RPMs on markets 0, 1, ..."""
    records = [record("ega", market, rpm) for market, rpm in enumerate(ega)]
    records += [record("mca", market, rpm) for market, rpm in enumerate(mca)]
    rows = claim_rows(records)
    (row,) = (r for r in rows if (r["metric"], r["scorer"]) == ("rpm", "truth"))
    assert (row["system"], row["other"]) == ("ega", "mca")
    return row


def test_the_interval_over_markets_decides():
    row = verdict([110.0, 120.0], [100.0, 100.0])
    reach = 12.7062047 * np.std([10.0, 20.0], ddof=1) / np.sqrt(2)
    assert (row["mean"], row["markets"], row["verdict"]) == (pytest.approx(15), 2, "cannot tell")
    assert (row["low"], row["high"]) == pytest.approx((15 - reach, 15 + reach))
    assert row["paper"] == pytest.approx(19.7, abs=0.05)
    assert verdict([114.0, 115.0, 116.0], [100.0] * 3)["verdict"] == "agrees"
    assert verdict([86.0, 85.0, 84.0], [100.0] * 3)["verdict"] == "disagrees"


def test_a_claim_may_be_that_a_system_is_below():
    assert PAPER["ega"][3] < PAPER["mca"][3], "the claim on Psi"
    pair = [record("ega", n, 1.0, psi_paper=0.02 + 0.001 * n) for n in range(3)]
    pair += [record("mca", n, 1.0, psi_paper=0.04) for n in range(3)]
    found = {row["metric"]: row["verdict"] for row in claim_rows(pair) if row["scorer"] == "truth"}
    assert found["psi_paper"] == "agrees"
    assert found["ctr_poi"] == "cannot tell", "no difference at all"


def test_one_market_decides_nothing():
    row = verdict([200.0], [100.0])
    assert row["verdict"] == "cannot tell"
    assert np.isnan([row["low"], row["high"]]).all()
    text = claims_markdown([row])
    assert "| ega over mca | rpm | +19.7 % |  | +100.0 % | 1 | cannot tell |" in text


def test_only_markets_of_both_systems_count():
    records = [record("ega", n, 110.0) for n in range(3)] + [record("mca", 1, 100.0)]
    records.append({"system": "mca", "market": 2, "failed": "the loss is nan at step 7"})
    assert {row["markets"] for row in claim_rows(records)} == {1}
    assert claim_rows(records[:3]) == []


def test_what_is_undefined_in_one_market_decides_nothing():
    records = [record("ega", n, 1.0, psi_paper=None if n else 0.1) for n in range(2)]
    records += [record("gr", n, 1.0, psi_paper=0.2) for n in range(2)]
    (row,) = (
        r for r in claim_rows(records) if (r["metric"], r["scorer"]) == ("psi_paper", "truth")
    )
    assert np.isnan(row["mean"])
    assert row["verdict"] == "cannot tell"
    assert "undefined" in claims_markdown([row])


def test_a_difference_of_zero_is_no_claim():
    records = [record(system, 0, 1.0) for system in ("ega", "ega-mtp")]
    assert {row["metric"] for row in claim_rows(records)} == {"rpm", "ctr_poi", "ctr_img"}


def test_without_a_truth_there_is_no_verdict():
    records = [record(system, 0, 1.0, scorers=["model"]) for system in ("gr", "mca")]
    rows = claim_rows(records)
    assert {row["scorer"] for row in rows} == {"model"}
    assert "| gr over mca | rpm | +7.4 % | +0.0 % |  | 1 |  |" in claims_markdown(rows)


def test_every_compared_system_is_in_the_paper():
    assert {name for pair in COMPARED for name in pair} == PAPER.keys()
