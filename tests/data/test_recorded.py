"""Optional columns of sessions that batches carry: context, exploration, propensity."""

import numpy as np
import pyarrow as pa
import pytest

from ega_jax.data.description import describe
from ega_jax.data.pipeline import eval_batches, open_dataset
from ega_jax.data.schema import validate
from ega_jax.data.tables import DataError

T, X = 4, 3
CONTEXT, EXPLORED = pa.list_(pa.float32(), X), pa.bool_()


def recording(log, per_slot=False):
    """A log with all optional columns; returns it."""
    rng = np.random.default_rng(7)
    rows = len(log.sessions["session_id"])
    log.types |= {"context": CONTEXT, "explored": EXPLORED}
    log.sessions["context"] = np.float32(rng.normal(size=(rows, X))).tolist()
    log.sessions["explored"] = (rng.random(rows) < 0.3).tolist()
    if per_slot:
        log.types["propensity"] = pa.list_(pa.float32())
        log.sessions["propensity"] = [
            np.float32(rng.uniform(0.1, 1.0, len(shown))).tolist()
            for shown in log.sessions["shown_poi"]
        ]
    return log


def whole_split(dataset, split="pretrain", **options):
    batches = eval_batches(dataset, split, batch_size=7, history_length=T, **options)
    joined = list(batches)
    return {name: np.concatenate([batch[name] for batch in joined]) for name in joined[0]}


@pytest.mark.parametrize("kind", ["list", "list of doubles", "list of integers"])
def test_batches_carry_contexts_of_any_list_type(ad_log, tmp_path, kind):
    log = recording(ad_log)
    if kind != "list":
        log.types["context"] = pa.list_(pa.float64() if kind == "list of doubles" else pa.int16())
    if kind == "list of integers":
        log.sessions["context"] = np.arange(40 * X).reshape(40, X).tolist()
    dataset = open_dataset(log.write(tmp_path / "log"))
    assert dataset.summary.context_width == X
    batch = whole_split(dataset)
    assert batch["context"].dtype == np.float32
    np.testing.assert_array_equal(batch["context"], np.float32(log.sessions["context"])[:28])


def test_batches_carry_exploration(ad_log, tmp_path):
    log = recording(ad_log)
    batch = whole_split(open_dataset(log.write(tmp_path / "log")))
    assert batch["explored"].dtype == bool
    assert batch["explored"].tolist() == log.sessions["explored"][:28]


@pytest.mark.parametrize("per_slot", [False, True])
def test_propensities_multiply_to_that_of_the_slate(ad_log, tmp_path, per_slot):
    log = recording(ad_log, per_slot)
    log.sessions["propensity"][3] = None
    dataset = open_dataset(log.write(tmp_path / "log"))
    found = whole_split(dataset, num_slots=5)["propensity"]
    assert (found.shape, found.dtype) == ((28, 5), np.float32)
    for row, given in enumerate(log.sessions["propensity"][:28]):
        expected = 0.0 if given is None else np.prod(given)
        assert found[row].prod() == pytest.approx(expected, rel=1e-5), row
    read = np.concatenate(list(dataset.recorded_in("pretrain", "propensity")))
    np.testing.assert_array_equal(read, found[:, : read.shape[1]])


def test_batches_of_a_log_with_books_carry_them_too(book_log, tmp_path):
    log = recording(book_log)
    dataset = open_dataset(log.write(tmp_path / "log"))
    batch = whole_split(dataset)
    np.testing.assert_array_equal(batch["context"], np.float32(log.sessions["context"])[:28])
    read = np.concatenate(list(dataset.recorded_in("align", "context")))
    np.testing.assert_array_equal(read, np.float32(log.sessions["context"])[28:32])


def test_blank_rows_have_no_context_and_no_propensity(ad_log, tmp_path):
    log = recording(ad_log)
    (batch,) = eval_batches(
        open_dataset(log.write(tmp_path / "log")), "test", batch_size=8, history_length=T
    )
    for name in ("context", "explored", "propensity"):
        assert not batch[name][6:].any(), name
        assert batch[name][:6].any(), name


def test_a_log_without_them_is_as_it_was(ad_log, tmp_path):
    del ad_log.sessions["propensity"]
    dataset = open_dataset(ad_log.write(tmp_path / "log"))
    assert (dataset.summary.context_width, dataset.recorded) == (0, ())
    assert not {"context", "explored", "propensity"} & whole_split(dataset).keys()


def test_columns_without_any_value_are_absent(ad_log, tmp_path):
    log = recording(ad_log)
    for name in ("context", "explored", "propensity"):
        log.sessions[name] = [None] * 40
    dataset = open_dataset(log.write(tmp_path / "log"))
    assert (dataset.summary.context_width, dataset.recorded) == (0, ())


@pytest.mark.parametrize(
    ("column", "row", "value", "rule"),
    [
        ("context", 3, [1.0, float("nan"), 0.0], "features must be finite"),
        ("context", 3, [1.0, float("inf"), 0.0], "features must be finite"),
        ("context", 3, [1.0, None, 0.0], "features must be finite (no NaN, infinity or null)"),
        ("context", 3, None, "nulls are not allowed"),
        ("context", 3, [1.0, 2.0], "contexts must have one length, that of the first row, 3"),
        ("context", 30, [1.0], "contexts must have one length, that of the first row, 3, found 1"),
        ("context", 0, [], "a context must have at least one value"),
        ("explored", 5, None, "nulls are not allowed"),
        ("explored", 5, 2, "a flag must be true or false, 1 or 0, found 2"),
        ("propensity", 6, [0.5], "a list must be as long as that of 'shown_poi', found 1"),
        ("propensity", 6, "zero", "propensities must be in (0, 1], found 0.0"),
        ("propensity", 6, "above 1", "propensities must be in (0, 1], found 1.5"),
    ],
)
def test_a_malformed_value_is_named(ad_log, tmp_path, column, row, value, rule):
    log = recording(ad_log, per_slot=True)
    log.types |= {"context": pa.list_(pa.float32()), "explored": pa.int8()}
    log.sessions["explored"] = [int(flag) for flag in log.sessions["explored"]]
    shown = log.sessions["shown_poi"]
    if isinstance(value, str):
        value = [0.0 if value == "zero" else 1.5] + [0.5] * (len(shown[row]) - 1)
    log.sessions[column][row] = value
    with pytest.raises(DataError) as error:
        validate(log.write(tmp_path / "log"))
    place = f"part-{row // 25}.parquet, column '{column}', row {row % 25}: {rule}"
    assert place in str(error.value)


def test_short_and_empty_slates_are_read(ad_log, tmp_path):
    log = recording(ad_log, per_slot=True)
    for name in ("shown_poi", "shown_creative", "shown_is_ad", "click_poi", "click_image"):
        log.sessions[name][0] = log.sessions[name][0][:1]
        log.sessions[name][1] = []
    log.sessions["convert"][0], log.sessions["convert"][1] = [False], []
    log.sessions["propensity"][0], log.sessions["propensity"][1] = [0.25], []
    batch = whole_split(open_dataset(log.write(tmp_path / "log")))
    assert (batch["shown_poi"][0] >= 0).tolist() == [True, False, False]
    assert (batch["shown_poi"][1] == -1).all()
    assert batch["propensity"][0].tolist() == [0.25, 1.0, 1.0]
    assert batch["propensity"][1].tolist() == [1.0, 1.0, 1.0]
    assert not batch["target_weight"][1].any()


@pytest.mark.parametrize("per_slot", [False, True])
def test_a_description_has_their_figures(ad_log, tmp_path, per_slot):
    log = recording(ad_log, per_slot)
    log.sessions["propensity"][3] = None
    folder = log.write(tmp_path / "log")
    facts = describe(folder, validate(folder), (0.7, 0.1, 0.1)).facts
    assert facts["context width (X)"] == X
    assert facts["explored share of slates"] == np.mean(log.sessions["explored"])
    known = [np.prod(x) for x in log.sessions["propensity"] if x is not None]
    assert facts["propensity"]["0 %"] == pytest.approx(min(known), rel=1e-5)
    assert facts["propensity"]["50 %"] == pytest.approx(np.median(known), rel=1e-5)
    assert facts["propensity"]["100 %"] == pytest.approx(max(known), rel=1e-5)


def test_a_description_of_a_log_without_them_has_no_such_figures(ad_log, tmp_path):
    del ad_log.sessions["propensity"]
    folder = ad_log.write(tmp_path / "log")
    facts = describe(folder, validate(folder), (0.7, 0.1, 0.1)).facts
    assert not {"context width (X)", "explored share of slates", "propensity"} & facts.keys()
