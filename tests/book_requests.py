"""Requests to the books of a large forest, and what a system computes for them."""

import jax
import numpy as np
from tiny_models import P, T

from ega_jax.types import BookRequest


def requests_to(book, seed):
    """Requests to books `[B]` with organic items."""
    rng, rows = np.random.default_rng(seed), len(book)
    history = rng.integers(-1, P, (rows, T)).astype(np.int32)
    organic = np.stack([rng.permutation(P)[:5] for _ in book]).astype(np.int32)
    return BookRequest(history, history, organic, np.asarray(book, np.int32))


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
