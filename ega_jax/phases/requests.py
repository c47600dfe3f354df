"""The requests in a batch of a log, without the blank rows that fill up a last batch."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ega_jax.types import AnyRequest, BookRequest, Request


def real_rows(batch: Mapping[str, Any]) -> np.ndarray:
    """Returns which rows of a batch hold a request, `[B]` bool; a last batch may be padded."""
    if "book" in batch:
        return np.asarray(batch["book"]) >= 0
    return np.any(np.asarray(batch["item"]) >= 0, axis=-1)


def real_requests(batch: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns a batch without its blank rows."""
    real = real_rows(batch)
    return {name: np.asarray(x)[real] for name, x in batch.items()}


def without_blanks(batch: Mapping[str, Any]) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """Returns a batch with a real request in place of blank rows, and which rows were real."""
    real = real_rows(batch)
    filled = np.where(real, np.arange(len(real)), np.argmax(real))
    return {name: np.asarray(x)[filled] for name, x in batch.items()}, real


def request_of(batch: Mapping[str, Any]) -> AnyRequest:
    """Picks the fields of a request from a batch that may hold more."""
    kind = BookRequest if "book" in batch else Request
    return kind(**{name: batch[name] for name in kind.__dataclass_fields__ if name in batch})
