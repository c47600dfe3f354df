"""The ad log of Open Bandit against loops over the rows of its files."""

import numpy as np
import public_logs
import pyarrow.parquet as pq
import pytest
from public_logs import NUM_ITEMS, bandit_items, bandit_rows, write_csv

from ega_jax.data.convert.ad_log import convert_log
from ega_jax.data.convert.open_bandit import open_bandit
from ega_jax.data.pipeline import eval_batches, open_dataset
from ega_jax.data.tables import DataError
from ega_jax.errors import UserError


def converted(folder, rows, items=None):
    log = write_csv(folder / "all.csv", rows)
    items = write_csv(folder / "item_context.csv", items or bandit_items())
    return convert_log(open_bandit, [log], items, folder / "out")


def context_of(row, rows):
    """By hand: position, classes in the order of their names, affinities."""
    values = [float(row["position"] == position) for position in (1, 2, 3)]
    for name in ("user_feature_0", "user_feature_1"):
        values += [float(row[name] == found) for found in sorted({row[name] for row in rows})]
    return values + [row[f"user-item_affinity_{item}"] for item in range(NUM_ITEMS)]


def test_sessions_are_the_rows_in_time_order(tmp_path):
    rows = bandit_rows()
    shuffled = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    report = converted(tmp_path, shuffled)
    sessions = pq.read_table(tmp_path / "out" / "sessions").to_pylist()
    for number, (session, row) in enumerate(zip(sessions, rows, strict=True)):
        assert session["session_id"] == session["user_id"] == number
        assert session["timestamp"].microsecond == number
        assert session["history_poi"] == session["organic_poi"] == []
        assert session["ad_poi"] == list(range(NUM_ITEMS))
        assert session["ad_bid"] == [1.0] * NUM_ITEMS
        assert (session["shown_poi"], session["shown_is_ad"]) == ([row["item_id"]], [True])
        assert session["click_poi"] == [row["click"] == 1]
        assert session["click_image"] == session["convert"] == [False]
        assert session["propensity"] == row["propensity_score"]
        assert session["context"] == context_of(row, rows)
    assert (report.summary.num_rows, report.summary.num_slots) == (len(rows), 1)
    assert report.summary.context_width == 3 + 3 + 2 + NUM_ITEMS


def test_items_have_their_number_and_classes(tmp_path):
    items = bandit_items()
    converted(tmp_path, bandit_rows(), items[::-1])
    pois = pq.read_table(tmp_path / "out" / "pois.parquet").to_pylist()
    numbers = [item["item_feature_0"] for item in items]
    for poi, item in zip(pois, items, strict=True):
        number = (item["item_feature_0"] - np.mean(numbers)) / np.std(numbers)
        classes = [float(item["item_feature_1"] == name) for name in ("a0", "a1", "a2")]
        classes += [float(item["item_feature_2"] == name) for name in ("b0", "b1")]
        assert poi["source_id"] == item["item_id"]
        np.testing.assert_allclose(poi["embedding"], [number, *classes], rtol=1e-5)


def test_the_report_says_what_is_not_there(tmp_path):
    told = str(converted(tmp_path, bandit_rows()))
    for text in (
        "every item is an ad with a bid of 1",
        "context: 3 positions, 5 classes of 2 user features, 6 affinities",
        "warning: every history is empty",
        "warning: the log has no creatives",
        "warning: slates have one slot",
    ):
        assert text in told, text


def test_batches_have_propensities_and_pois_for_creatives(tmp_path):
    rows = bandit_rows()
    converted(tmp_path, rows)
    dataset = open_dataset(tmp_path / "out", fractions=(1.0, 0.0, 0.0))
    batch = next(iter(eval_batches(dataset, "pretrain", batch_size=8, history_length=3)))
    propensities = np.float32([[row["propensity_score"]] for row in rows[:8]])
    np.testing.assert_array_equal(batch["propensity"], propensities)
    np.testing.assert_array_equal(batch["shown_creative"], batch["shown_poi"])
    np.testing.assert_array_equal(batch["history_creative"], np.full((8, 3), -1))


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("item_id", 9, "column 'item_id', row 4: the item is not in the file of items, found 9"),
        ("position", 0, "column 'position', row 4: a position must be in 1..3, found 0"),
        ("click", 2, "column 'click', row 4: a click must be 0 or 1, found 2"),
        ("propensity_score", 0.0, "row 4: propensities must be in (0, 1], found 0.0"),
        ("propensity_score", "", "column 'propensity_score', row 4: the value is missing"),
        ("position", "left", "cannot be read to its end"),
    ],
)
def test_a_malformed_row_is_named(tmp_path, column, value, message):
    rows = bandit_rows()
    rows[4][column] = value
    with pytest.raises(DataError) as error:
        converted(tmp_path, rows)
    assert message in str(error.value)
    assert "all.csv" in str(error.value)
    assert not (tmp_path / "out").exists()


def test_missing_columns_and_files_are_named(tmp_path):
    rows = [
        {name: value for name, value in row.items() if name != "click"} for row in bandit_rows()
    ]
    with pytest.raises(DataError, match=r"all.csv, column 'click': the column is missing; there"):
        converted(tmp_path, rows)
    log, items = public_logs.write_bandit(tmp_path)
    with pytest.raises(DataError, match=r"nowhere.csv: the file does not exist"):
        convert_log(open_bandit, [log], tmp_path / "nowhere.csv", tmp_path / "out")
    with pytest.raises(UserError, match=r"open_bandit takes one log"):
        convert_log(open_bandit, [log, log], items, tmp_path / "out")
    with pytest.raises(DataError, match=r"column 'item_id': an item comes twice"):
        converted(tmp_path, bandit_rows(), [*bandit_items(), bandit_items()[0]])
    assert not (tmp_path / "out").exists()
