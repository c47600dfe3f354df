"""Requests to the books of a large forest, and what a system computes for them."""

import jax
import numpy as np
from tiny_models import K, P, T, W

from ega_jax.data.books import Books
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.types import BookRequest


def requests_to(book, seed):
    """Requests to books `[B]` with organic items."""
    rng, rows = np.random.default_rng(seed), len(book)
    history = rng.integers(-1, P, (rows, T)).astype(np.int32)
    organic = np.stack([rng.permutation(P)[:5] for _ in book]).astype(np.int32)
    return BookRequest(history, history, organic, np.asarray(book, np.int32))


def in_books(requests, system, reserve=0.0):
    """The same requests to a book each: the books, their ledger, and the fields of the requests."""
    is_ad, item = np.asarray(requests.is_ad), np.asarray(requests.item)
    start = np.append(0, np.cumsum(is_ad.sum(axis=1))).astype(np.int64)
    bid = np.asarray(requests.bid)[is_ad]
    books = Books(item[is_ad], bid, start, np.arange(len(item), dtype=np.int64))
    codes = system.items.catalogue.poi_codes
    least = np.full(bid.shape, reserve)
    ledger = BookLedger(books.poi, bid, start, codes, W, num_slots=K, reserve=least)
    organic = np.full(item.shape, -1, np.int32)
    for row, there in enumerate((item >= 0) & ~is_ad):
        organic[row, : there.sum()] = item[row][there]
    history = {name: getattr(requests, name) for name in ("history_poi", "history_creative")}
    batch = history | {"organic": organic, "book": np.arange(len(item), dtype=np.int32)}
    return books, ledger, batch


def allocate(system, requests, levers):
    each = lambda request: system.allocate(system.prepare(request, levers))
    return jax.vmap(each)(requests)


def shapes_computed(jaxpr):
    """Shapes of all that is computed, in inner functions, loops and branches, too."""
    for equation in jaxpr.eqns:
        yield from (variable.aval.shape for variable in equation.outvars)
        for inner in jax.tree.leaves(list(equation.params.values())):
            inner = getattr(inner, "jaxpr", inner)
            if hasattr(inner, "eqns"):
                yield from shapes_computed(inner)
