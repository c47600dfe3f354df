"""Which slates of a request may be shown, and which of them are one step apart."""

import dataclasses
import functools

import jax
import numpy as np

from ega_jax.types import Request

Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class SlateRules:
    """Which slates may be shown.

    A slate fills as many slots as it can, shows no item twice, and of the organic items always the
    next one in upstream order: its ads `[K]`, -1 where a slot is organic, say what it is.
    """

    allowed: np.ndarray  # [D, N] bool, the ads that may be shown.
    place: np.ndarray | None  # [D, N] int place of an ad in the list whose order is kept.
    queue: np.ndarray  # [D, N + K] int organic candidates in upstream order, -1 after the last.
    holds: np.ndarray  # [D, K] bool, slots that hold an item.

    @classmethod
    def of(
        cls,
        request: Request,
        num_slots: int,
        allowed: np.ndarray,
        listed: np.ndarray | None = None,
    ) -> "SlateRules":
        """Makes the rules of a batch of requests; arguments as of `attainable.best_slates`."""
        there, is_ad = np.asarray(request.item) >= 0, np.asarray(request.is_ad)
        is_organic, allowed = there & ~is_ad, there & is_ad & allowed
        order = np.argsort(~is_organic, axis=1, kind="stable")
        queue = np.where(np.take_along_axis(is_organic, order, 1), order, -1)
        queue = np.pad(queue, ((0, 0), (0, num_slots)), constant_values=-1)
        place = None
        if listed is not None:
            same = listed[:, None] == np.arange(allowed.shape[1])[:, None]
            place, allowed = same.argmax(-1), allowed & same.any(-1)
        holds = np.arange(num_slots) < (allowed | is_organic).sum(1, keepdims=True)
        return cls(allowed, place, queue, holds)

    def filled(self, row: np.ndarray, ads: np.ndarray) -> np.ndarray:
        """Slates with these ads `[X, ..., K]`, the next organic item in each other slot."""
        return np.where(ads >= 0, ads, picked(self.queue, row, np.cumsum(ads < 0, -1) - 1, -1))

    def obeyed(self, row: np.ndarray, slate: np.ndarray) -> np.ndarray:
        """`[X, ...]` bool, which slates `[X, ..., K]` without repetition may be shown."""
        ads = np.where(picked(self.allowed, row, slate, False), slate, -1)
        holds = self.holds[row].reshape(len(row), *[1] * (slate.ndim - 2), -1)
        fine = (slate == self.filled(row, ads)) & (holds == (slate >= 0))
        if self.place is not None:
            place = picked(self.place, row, ads, -1)
            before = np.maximum.accumulate(place, -1)[..., :-1]
            fine[..., 1:] &= (ads[..., 1:] < 0) | (place[..., 1:] > before)
        return fine.all(-1)

    def first_ads(self, worth: np.ndarray, share: float) -> np.ndarray:
        """Ads `[D, K]` of slates that start with a share of ads, those of the highest worth."""
        full, slots = self.holds.sum(1), self.holds.shape[1]
        least = np.maximum(full - (self.queue >= 0).sum(1), 0)
        count = np.clip(round(share * slots), least, np.minimum(self.allowed.sum(1), full))
        best = np.argsort(-np.where(self.allowed, worth, -1.0), axis=1, kind="stable")
        best = np.pad(best, ((0, 0), (0, slots)))[:, :slots]
        ads = np.where(np.arange(slots) < count[:, None], best, -1)
        if self.place is None:
            return ads
        place = picked(self.place, np.arange(len(ads)), ads, ads.size)
        return np.take_along_axis(ads, np.argsort(place, axis=1, kind="stable"), 1)

    def changes(self, row: np.ndarray, slate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Slates `[X, V, K]` that differ from slates `[X, K]` by one step, and which are allowed.

        A step puts an ad, or none, into a slot, and what stood there into the slot that the ad
        had; or it takes out what a slot holds and inserts it elsewhere, moving what lies between.
        """
        ads = np.where(picked(self.allowed, row, slate, False), slate, -1)
        slot = np.arange(self.holds.shape[1])
        put = self.choices[row][:, None, :, None]
        old, here = ads[:, None, None, :], slot == slot[:, None, None]
        swapped = np.where((old == put) & (put >= 0), ads[:, :, None, None], old)
        puts = np.where(here, put, swapped).reshape(len(row), -1, slot.size)
        shifts = [np.insert(np.delete(slot, i), j, i) for i in slot for j in slot if i != j]
        slates = self.filled(row, np.concatenate([puts, ads[:, np.array(shifts)]], axis=1))
        return slates, self.obeyed(row, slates)

    @functools.cached_property
    def choices(self) -> np.ndarray:
        """Ads `[D, A]` that may be shown, -1 after the last, and at least one -1."""
        order = np.argsort(~self.allowed, axis=1, kind="stable")
        ads = np.where(np.take_along_axis(self.allowed, order, 1), order, -1)
        return np.pad(ads, ((0, 0), (0, 1)), constant_values=-1)[:, : self.allowed.sum(1).max() + 1]


def picked(values: Array, row: np.ndarray, places: np.ndarray, empty: float) -> np.ndarray:
    """Values `[D, N, ...]` at places `[X, ..., K]` of rows `[X]`, `empty` at negative ones."""
    found = values[row.reshape(-1, *[1] * (places.ndim - 1)), places]
    return np.where((places >= 0).reshape(*places.shape, *[1] * (values.ndim - 2)), found, empty)
