"""The table of the funnel: rows, what replaces what, and the figure."""

import math

import numpy as np
import pytest

from ega_jax.errors import UserError
from experiments.common.funnel_table import COLUMNS, add, draw, merged, numbers, read_rows, row_of

MEASURED = {"value": 9.5, "ctr_poi": 0.05, "low": 9.0, "high": 10.0, "ms": 3.0}


def test_a_figure_that_is_not_finite_is_an_empty_cell():
    row = row_of("ega", 40, **MEASURED | {"value": math.nan, "low": math.inf})
    assert tuple(row) == COLUMNS
    assert list(row.values()) == ["ega", 40, "", 0.05, "", 10.0, 3.0]


def test_rows_are_kept_from_run_to_run(tmp_path):
    add(tmp_path, row_of("mca", 1000, **MEASURED))
    add(tmp_path, row_of("mca", 200, **MEASURED))
    add(tmp_path, row_of("ega", 1_000_000, ms=7.25))
    add(tmp_path, row_of("mca", 1000, **MEASURED | {"value": 9.75}))
    assert (tmp_path / "funnel.csv").read_text().splitlines() == [
        "system,ads,value,ctr_poi,low,high,ms",
        "ega,1000000,,,,,7.25",
        "mca,200,9.5,0.05,9.0,10.0,3.0",
        "mca,1000,9.75,0.05,9.0,10.0,3.0",
    ]
    assert (tmp_path / "funnel.png").stat().st_size > 0


def test_a_row_of_random_models_does_not_replace_a_measured_one():
    random, sessions = row_of("ega", 40, ms=1.0), row_of("ega", 40, **MEASURED)
    clickless = row_of("ega", 40, ctr_poi=0.04, ms=2.0)
    assert merged([sessions], random) == [sessions]
    assert merged([random], row_of("ega", 40, ms=2.0)) == [row_of("ega", 40, ms=2.0)]
    assert merged([random], sessions) == [sessions]
    assert merged([sessions], clickless) == [clickless], "measured, though without a value"


def test_a_table_of_other_columns_is_not_overwritten(tmp_path):
    (tmp_path / "funnel.csv").write_text("system,value\nega,1\n")
    with pytest.raises(UserError, match=r"funnel\.csv: the columns are not system,ads,value"):
        add(tmp_path, row_of("ega", 40, ms=1.0))
    assert read_rows(tmp_path / "absent.csv") == []


def test_the_figure_leaves_out_what_a_row_lacks(tmp_path):
    rows = [row_of("ega", 1000, ms=7.0), row_of("ega", 40, **MEASURED)]
    np.testing.assert_array_equal(numbers(rows, "ads", "value", "low"), [[40], [9.5], [9]])
    np.testing.assert_array_equal(numbers(rows, "ads", "ms"), [[1000, 40], [7, 3]])
    assert numbers([], "ads", "ms").shape == (2, 0)
    draw(rows[:1], tmp_path / "funnel.png")
    assert (tmp_path / "funnel.png").stat().st_size > 0
