"""All slates of a small request, and all ways to choose their creatives, by plain enumeration."""

import itertools

import numpy as np


def every_slate(request, row, ads, num_slots, ordered=False):
    """Slates of a request with some of its ads, that fill what can be filled; `-1` is empty.

    Args:
      request: a batch.
      row: which of it.
      ads: candidates that may be shown.
      num_slots: K.
      ordered: the ads that are shown keep their order.
    """
    there = request.item[row] >= 0
    organic = [n for n in np.flatnonzero(there) if not request.is_ad[row, n]]
    size = min(num_slots, len(organic) + len(ads))
    for picks in itertools.product([-1, *ads], repeat=size):
        shown = [n for n in picks if n >= 0]
        if len(set(shown)) < len(shown) or size - len(shown) > len(organic):
            continue
        if ordered and shown != [n for n in ads if n in shown]:
            continue
        queue = iter(organic)
        yield [n if n >= 0 else next(queue) for n in picks] + [-1] * (num_slots - size)


def every_dress(sample, row, slate):
    """Creatives `[K]` that a slate of candidates may show."""
    owned = lambda n: sample.poi_creatives[sample.request.item[row, n]]
    choices = [[c for c in owned(n) if c >= 0] if n >= 0 else [-1] for n in slate]
    return itertools.product(*choices)


def exhaustive(sample, row, slates):
    """The highest value of some slates with any creatives."""
    pairs = [(slate, dress) for slate in slates for dress in every_dress(sample, row, slate)]
    slates, dresses = (np.array(x) for x in zip(*pairs, strict=True))
    return sample.values(np.full(len(slates), row), slates, dresses).max()
