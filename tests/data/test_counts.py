import numpy as np
import pytest

from ega_jax.data import counts
from ega_jax.data.counts import Distinct, Histogram, Sample, describe_values

VALUES = np.random.default_rng(0).integers(0, 30, 500)


def added(figure, values):
    for part in np.array_split(values, 13):
        figure = figure.add(part)
    return figure


def test_a_histogram_in_parts_is_one_of_the_whole():
    found = added(Histogram(), VALUES)
    np.testing.assert_array_equal(found.counts, np.bincount(VALUES))
    assert (found.total, found.sum) == (500, VALUES.sum())
    assert found.mean == pytest.approx(VALUES.mean())
    for share in (0.01, 0.5, 0.9, 1.0):
        assert found.quantile(share) == np.quantile(VALUES, share, method="inverted_cdf")


def test_a_histogram_of_nothing():
    found = Histogram().add(np.zeros(0, int))
    assert (found.total, found.mean, found.quantile(0.5)) == (0, 0.0, 0)
    assert found.padded(2).tolist() == [0, 0]


def test_distinct_values():
    assert added(Distinct(), VALUES).total == len(set(VALUES.tolist()))
    assert Distinct().total == 0


def test_a_sample_holds_all_or_every_so_many(monkeypatch):
    assert (
        added(Sample(), VALUES).quantiles((0.0, 0.5, 1.0))
        == np.quantile(VALUES, (0.0, 0.5, 1.0)).tolist()
    )
    monkeypatch.setattr(counts, "MOST_SAMPLED", 100)
    found = added(Sample(), VALUES)
    assert found.stride == 8
    np.testing.assert_array_equal(found.values, VALUES[::8])


def test_values_are_described_as_their_histogram_is():
    values = np.random.default_rng(3).integers(0, 40, size=101)
    assert describe_values(values) == pytest.approx(Histogram().add(values).describe())
    assert describe_values(np.array([10**12]))["most"] == 10**12
