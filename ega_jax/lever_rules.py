"""Validation of the settings of one call: payment rule and levers."""

import numbers
from collections.abc import Collection, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.amounts import LARGEST, is_amount
from ega_jax.errors import UserError

TRUTHFUL = "truthful"  # A bid-free menu with Clarke prices: no misreport can raise utility.


def checked_settings(
    rule: str, choices: Collection[str], defaults: Mapping[str, Any], changes: Mapping[str, Any]
) -> tuple[str, dict[str, jax.Array]]:
    """Validates the payment rule and the levers of one call.

    Args:
      rule: the payment rule to charge.
      choices: the rules that may be charged.
      defaults: the levers' default values.
      changes: values that replace some of them.

    Returns:
      The payment rule that computes the prices, and the levers as arrays.

    Raises:
      UserError: the rule or a lever is unknown, a value is out of range, or the truthful mode is
        not bid-free.
    """
    if rule not in choices:
        raise UserError(f"payment rule {rule!r} is not one of {', '.join(choices)}")
    if rule != TRUTHFUL:
        return rule, checked_levers(defaults, changes)
    if not changes.get("bid_free", True):
        raise UserError("the truthful mode is bid-free: leave bid_free out")
    return "clarke", checked_levers(defaults, {**changes, "bid_free": True})


def checked_levers(defaults: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, jax.Array]:
    """Applies changes to levers and keeps their dtypes, so that nothing recompiles.

    Raises:
      UserError: a lever does not exist, or its value is out of range.
    """
    types = {name: jnp.asarray(value).dtype for name, value in defaults.items()}
    for name, value in changes.items():
        if name not in types:
            raise UserError(f"no lever {name!r}; valid levers: {', '.join(types)}")
        if rule := _broken_rule(name, value, types[name]):
            raise UserError(f"lever {name} is {value}: it must be {rule}")
    values = {**defaults, **changes}
    return {name: jnp.asarray(value, types[name]) for name, value in values.items()}


def check_book_levers(levers: Mapping[str, Any], smoothing: float, takes_means: bool) -> None:
    """Refuses levers that the order of ads in a book does not serve.

    Args:
      levers: the levers of one call.
      smoothing: weight of past bids in the book's order, from 0 to 1.
      takes_means: whether a token's bid is the mean of its ads' bids.

    Raises:
      UserError: names lever and book.
    """
    bid_free = bool(levers["bid_free"])
    if smoothing < 1 and bid_free:
        raise UserError(
            "the search is bid-free and live bids are in the book's order: give a book with "
            "search_bid and smoothing=1"
        )
    if smoothing == 1 and not bid_free:
        raise UserError("the book has a search_bid of its own: set bid_free=True")
    if float(levers["reserve"]) > 0 and (smoothing > 0 or takes_means):
        raise UserError(
            f"reserve is {levers['reserve']}: a book with search_bid or mean token bids does not "
            "serve it; give the ads reserves of their own and set reserve=0"
        )


def _broken_rule(name: str, value: Any, dtype: np.dtype) -> str:
    """The rule that a lever's value violates, "" if it is valid."""
    if not _is_number(value):
        return "one number"
    if jnp.issubdtype(dtype, jnp.bool_) and value not in (False, True):
        return "False or True"
    is_whole = float(value).is_integer() and 0 <= value < 2**31
    if jnp.issubdtype(dtype, jnp.integer) and not is_whole:
        return "a whole number, at least 0"
    if not is_amount(value) or (name == "alpha" and value == 0):
        least = "above 0" if name == "alpha" else "at least 0"
        return f"{least} and at most {LARGEST:g}"
    return ""


def _is_number(value: Any) -> bool:
    kinds = numbers.Real | np.number | np.bool_ | np.ndarray | jax.Array
    return isinstance(value, kinds) and getattr(value, "shape", ()) == ()
