"""Figures of a column that is larger than memory, from one part after another."""

import dataclasses

import numpy as np

MOST_SAMPLED = 2**20


@dataclasses.dataclass(frozen=True)
class Histogram:
    """How often each whole number from 0 on was found, among lengths or places."""

    counts: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))

    def add(self, values: np.ndarray) -> "Histogram":
        """Counts some more values `[n]`."""
        more = np.bincount(values, minlength=len(self.counts))
        more[: len(self.counts)] += self.counts
        return Histogram(more)

    @property
    def total(self) -> int:
        """How many values there are."""
        return int(self.counts.sum())

    @property
    def mean(self) -> float:
        """Their mean; 0 without values."""
        return self.sum / max(self.total, 1)

    @property
    def sum(self) -> int:
        """Their sum."""
        return int(np.arange(len(self.counts)) @ self.counts)

    def quantile(self, share: float) -> int:
        """The smallest number that at least this share of the values does not exceed."""
        reached = np.cumsum(self.counts) >= share * self.total
        return int(np.argmax(reached)) if self.total else 0

    def padded(self, size: int) -> np.ndarray:
        """`[size]` the counts, 0 where nothing was found."""
        return np.pad(self.counts, (0, max(size - len(self.counts), 0)))[:size]

    def describe(self) -> dict[str, float]:
        """Mean, median, the 90 % quantile and the largest."""
        return {
            "mean": self.mean,
            "median": self.quantile(0.5),
            "90 %": self.quantile(0.9),
            "most": self.quantile(1.0),
        }


def describe_values(values: np.ndarray) -> dict[str, float]:
    """The figures of `Histogram.describe`, of values `[n]` that may be too large to count so."""
    shares = {"median": 0.5, "90 %": 0.9, "most": 1.0}
    found = np.quantile(values, list(shares.values()), method="inverted_cdf").tolist()
    return {"mean": float(values.mean()), **dict(zip(shares, found, strict=True))}


@dataclasses.dataclass(frozen=True)
class Sample:
    """Every `stride`-th of some values: all of them, up to a million."""

    values: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0))
    stride: int = 1
    seen: int = 0  # values so far.

    def add(self, values: np.ndarray) -> "Sample":
        """Takes some more values `[n]`; if there are too many, every second one is dropped."""
        kept = np.concatenate([self.values, values[-self.seen % self.stride :: self.stride]])
        stride = self.stride
        while len(kept) > MOST_SAMPLED:
            kept, stride = kept[::2], 2 * stride
        return Sample(kept, stride, self.seen + len(values))

    def quantiles(self, shares: tuple[float, ...]) -> list[float]:
        """The quantiles at some shares; none without values."""
        return np.quantile(self.values, shares).tolist() if len(self.values) else []


@dataclasses.dataclass(frozen=True)
class Distinct:
    """Different values, merged once as many more have come: each is sorted a few times only."""

    merged: np.ndarray = dataclasses.field(default_factory=lambda: np.zeros(0, np.int64))
    recent: tuple[np.ndarray, ...] = ()

    def add(self, values: np.ndarray) -> "Distinct":
        """Takes some more values `[n]`."""
        recent = (*self.recent, np.unique(values))
        if sum(map(len, recent)) <= len(self.merged):
            return Distinct(self.merged, recent)
        return Distinct(np.unique(np.concatenate([self.merged, *recent])))

    @property
    def total(self) -> int:
        """How many different values there are."""
        return len(np.unique(np.concatenate([self.merged, *self.recent])))
