"""Amounts of currency: bids, prices and levers."""

from typing import Any

LARGEST = 1e30  # Amounts up to it can be summed and multiplied by click rates in float32.


def is_amount(values: Any) -> Any:
    """Whether values are amounts of currency from 0 to `LARGEST`.

    Examples:
      >>> [bool(is_amount(value)) for value in (0.0, 2.5, -1.0, float("nan"))]
      [True, True, False, False]
    """
    return (values >= 0) & (values <= LARGEST)
