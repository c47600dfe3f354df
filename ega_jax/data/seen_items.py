"""Which POIs a split of an ad log has, in any part of its sessions; others are new to it."""

import numpy as np

from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.data.book_rules import book_numbers
from ega_jax.data.columns import to_numpy
from ega_jax.data.ragged import Ragged

LISTS = ("history_poi", "organic_poi", "shown_poi")


def seen_pois(dataset: AdLogDataset, split: str = "pretrain") -> np.ndarray:
    """Marks the POIs of a split's histories, organic items, slates, ads and named books.

    Args:
      dataset: an ad log; the split is read once, a row group at a time.
      split: "pretrain", "align", "tune" or "test".

    Returns:
      `[P]` bool.
    """
    books, seen = dataset.books, np.zeros(dataset.summary.num_items, bool)
    lists = LISTS if books is not None else (*LISTS, "ad_poi")
    named = np.zeros(dataset.summary.num_books, bool)
    for group in dataset.split(split):
        table = group.read([*lists, *(() if books is None else ("book_id",))])
        for column in lists:
            seen[Ragged.from_arrow(table[column], np.int64).values] = True
        if books is not None:
            named[book_numbers(books.book_id, to_numpy(table["book_id"], np.int64))] = True
    if books is not None:
        seen[books.poi[named[books.number]]] = True
    return seen
