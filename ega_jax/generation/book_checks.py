"""Checks of what a `BookLedger` is given; each error names the first wrong entry."""

import numpy as np
from numpy.typing import ArrayLike

from ega_jax.amounts import LARGEST, is_amount
from ega_jax.errors import UserError


def weight(smoothing: float | None, search_bid: ArrayLike | None) -> float:
    """The weight of search bids from 0 to 1: by default 1, and 0 without search bids.

    Raises:
      UserError: it is out of range, or there are no search bids to weigh.
    """
    if smoothing is None:
        return 0.0 if search_bid is None else 1.0
    if search_bid is None:
        raise UserError(f"smoothing is {smoothing}: give the search_bid that it is the weight of")
    if not 0 <= smoothing <= 1:
        raise UserError(f"smoothing is {smoothing}: it must be from 0 to 1")
    return float(smoothing)


def listing(
    poi: ArrayLike, book_start: ArrayLike, poi_codes: ArrayLike, num_codes: int
) -> tuple[np.ndarray, np.ndarray]:
    """Checks which POIs the books list, but not whether a book repeats one.

    Returns:
      `poi` and `book_start`, both int32.

    Raises:
      UserError: there is no ad, the books do not divide the ads, or a POI or code is out of range.
    """
    poi, book_start = _integers("poi", poi), _integers("book_start", book_start)
    codes = np.asarray(poi_codes)
    if not poi.size:
        raise UserError("the books list no ad")
    ends = book_start[[0, -1]].tolist() if book_start.size else []
    if ends != [0, poi.size]:
        raise UserError(f"book_start goes from 0 to the number of ads, {poi.size}; found {ends}")
    if (falls := np.diff(book_start) < 0).any():
        book = int(np.argmax(falls))
        raise UserError(f"book {book} ends at ad {book_start[book + 1]}, before it starts")
    if codes.ndim != 2 or not codes.size or codes.dtype.kind not in "iu":
        raise UserError(f"poi_codes has the shape {codes.shape}, not [POIs, layers] of integers")
    if codes.min() < 0 or codes.max() >= num_codes:
        first = int(np.argmax(((codes < 0) | (codes >= num_codes)).any(axis=1)))
        raise UserError(f"POI {first} has the codes {codes[first]}, outside [0, {num_codes})")
    if (wrong := (poi < 0) | (poi >= len(codes))).any():
        ad = int(np.argmax(wrong))
        raise UserError(f"ad {ad} is of POI {poi[ad]}, which is not one of the {len(codes)} POIs")
    return poi.astype(np.int32), book_start.astype(np.int32)


def amounts(
    name: str, values: ArrayLike, size: int, numbers: np.ndarray | None = None
) -> np.ndarray:
    """Checks bids of ads and returns a float32 copy.

    Args:
      name: what the bid is called.
      values: `[size]` bids.
      size: the number of ads that are given.
      numbers: `[size]` numbers of these ads; by default, they are all ads.

    Raises:
      UserError: the length does not match, or a bid is negative, NaN or above `LARGEST`.
    """
    values = np.asarray(values)
    if values.shape != (size,) or values.dtype.kind not in "fiub":
        raise UserError(f"{size} ads have {name}s of shape {values.shape} and type {values.dtype}")
    if not (fine := is_amount(values)).all():
        place = int(np.argmin(fine))
        ad = place if numbers is None else numbers[place]
        raise UserError(
            f"the {name} of ad {ad} is {values[place]}, which is not from 0 to {LARGEST:g}"
        )
    return values.astype(np.float32) + np.float32(0)  # Turns -0 into 0, which sorts by its bits.


def marks(eligible: ArrayLike, size: int) -> np.ndarray:
    """Checks which ads may be shown, `[size]` bool.

    Raises:
      UserError: the length or the type does not match.
    """
    eligible = np.asarray(eligible)
    if eligible.shape != (size,) or eligible.dtype != bool:
        raise UserError(
            f"`eligible` of {size} ads has the shape {eligible.shape} and type {eligible.dtype}, "
            f"not ({size},) and bool"
        )
    return eligible


def ads(numbers: ArrayLike, num_ads: int) -> np.ndarray:
    """Checks the numbers of ads to update and returns them as `[m]` int32.

    Raises:
      UserError: a number is out of range or appears twice.
    """
    numbers = _integers("ads", numbers)
    if (wrong := (numbers < 0) | (numbers >= num_ads)).any():
        raise UserError(f"ad {numbers[np.argmax(wrong)]} is not one of the {num_ads} ads")
    order = np.argsort(numbers, kind="stable")
    again = np.flatnonzero(numbers[order[1:]] == numbers[order[:-1]]) + 1
    if again.size:
        raise UserError(f"ad {numbers[order[again].min()]} is given twice")
    return numbers.astype(np.int32)


def _integers(name: str, values: ArrayLike) -> np.ndarray:
    """Values as an array of integers with one axis."""
    values = np.asarray(values)
    if values.ndim == 1 and not values.size:
        return values.astype(np.int32)
    if values.ndim != 1 or values.dtype.kind not in "iu":
        raise UserError(
            f"{name} has the shape {values.shape} and type {values.dtype}, "
            "but is a list of integers"
        )
    return values
