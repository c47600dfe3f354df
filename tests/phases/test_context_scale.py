"""The scale of the context: measured by hand, kept in the workdir, and what does not fit it."""

import dataclasses

import numpy as np
import pytest

from ega_jax.errors import UserError
from ega_jax.phases.context import FILE, context_scale, measure
from ega_jax.types import ContextScale


@dataclasses.dataclass(frozen=True)
class FakeSummary:
    context_width: int


class FakeLog:
    """What is read of a dataset, and how often."""

    def __init__(self, contexts):
        self.contexts, self.reads = contexts, 0
        self.summary = FakeSummary(contexts.shape[1])

    def recorded_in(self, split, column):
        assert (split, column) == ("pretrain", "context")
        self.reads += 1
        yield from np.array_split(self.contexts, 3)


def test_mean_and_deviation_of_all_rows():
    rng = np.random.default_rng(0)
    contexts = np.float32(rng.normal([0.0, 1.7e9, 3.0], [1e-3, 1e5, 0.0], (1000, 3)))
    found = measure(np.array_split(contexts, 7))
    exact = contexts.astype(np.float64)
    np.testing.assert_allclose(found.mean, exact.mean(0), rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(found.deviation[:2], exact.std(0)[:2], rtol=1e-6)
    assert found.deviation[2] == 0.0


def test_it_is_measured_once_per_workdir(tmp_path, monkeypatch):
    monkeypatch.setattr("ega_jax.phases.context.AdLogDataset", FakeLog)
    log = FakeLog(np.float32([[1.0, 2.0], [3.0, 2.0], [5.0, 2.0]]))
    scale = context_scale(log, tmp_path / "run")
    assert scale.mean == (3.0, 2.0)
    np.testing.assert_allclose(scale.deviation, (np.sqrt(8 / 3), 0.0))
    longer = FakeLog(np.float32([[100.0, 7.0]]))
    assert context_scale(longer, tmp_path / "run") == scale
    assert (log.reads, longer.reads) == (1, 0)
    with pytest.raises(UserError, match=r"has 1 values, and the models of .*run read 2: choose"):
        context_scale(FakeLog(np.float32([[1.0]])), tmp_path / "run")


def test_without_a_context_nothing_is_kept(tmp_path):
    assert context_scale(FakeLog(np.zeros((3, 0), np.float32)), tmp_path) == ContextScale()
    assert not (tmp_path / FILE).exists()
