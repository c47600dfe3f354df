"""The valid slates of a request, and the neighbours of a slate in the local search."""

import dataclasses
import functools

import jax
import numpy as np

from ega_jax.types import Request

Array = jax.Array | np.ndarray


@dataclasses.dataclass(frozen=True)
class SlateRules:
    """The rules of valid slates for `D` requests.

    A slate fills as many slots as it can, shows no item twice, and keeps the organic items in
    upstream order. So its ads `[K]`, -1 where a slot is organic, determine it.
    """

    allowed: np.ndarray  # [D, N] bool, the ads that may be shown.
    place: np.ndarray | None  # [D, N] int position of an ad in `listed`; None: any order.
    queue: np.ndarray  # [D, N + K] int organic candidates in upstream order, -1 after the last.
    holds: np.ndarray  # [D, K] bool, slots that hold an item.
    max_ads: int  # The most ads in a slate.

    @classmethod
    def of(
        cls,
        request: Request,
        num_slots: int,
        allowed: np.ndarray,
        listed: np.ndarray | None = None,
        max_ads: int | None = None,
    ) -> "SlateRules":
        """Makes the rules of a batch of requests; see `attainable.best_slates` for arguments."""
        there, is_ad = np.asarray(request.item) >= 0, np.asarray(request.is_ad)
        is_organic, allowed = there & ~is_ad, there & is_ad & allowed
        order = np.argsort(~is_organic, axis=1, kind="stable")
        queue = np.where(np.take_along_axis(is_organic, order, 1), order, -1)
        queue = np.pad(queue, ((0, 0), (0, num_slots)), constant_values=-1)
        place = None
        if listed is not None:
            same = listed[:, None] == np.arange(allowed.shape[1])[:, None]
            place, allowed = same.argmax(-1), allowed & same.any(-1)
        most = num_slots if max_ads is None else min(max_ads, num_slots)
        items = np.minimum(allowed.sum(1), most) + is_organic.sum(1)
        holds = np.arange(num_slots) < items[:, None]
        return cls(allowed, place, queue, holds, most)

    def filled(self, row: np.ndarray, ads: np.ndarray) -> np.ndarray:
        """Returns slates with these ads `[X, ..., K]`; other slots get the next organic items."""
        return np.where(ads >= 0, ads, picked(self.queue, row, np.cumsum(ads < 0, -1) - 1, -1))

    def obeyed(self, row: np.ndarray, slate: np.ndarray) -> np.ndarray:
        """Returns which slates `[X, ..., K]` without repeated items are valid, `[X, ...]` bool."""
        ads = np.where(picked(self.allowed, row, slate, False), slate, -1)
        holds = self.holds[row].reshape(len(row), *[1] * (slate.ndim - 2), -1)
        fine = (slate == self.filled(row, ads)) & (holds == (slate >= 0))
        if self.place is not None:
            place = picked(self.place, row, ads, -1)
            before = np.maximum.accumulate(place, -1)[..., :-1]
            fine[..., 1:] &= (ads[..., 1:] < 0) | (place[..., 1:] > before)
        return fine.all(-1) & ((ads >= 0).sum(-1) <= self.max_ads)

    def first_ads(self, worth: np.ndarray, share: float) -> np.ndarray:
        """Returns ads `[D, K]` of slates that start with a share of ads, the best by `worth`."""
        full, slots = self.holds.sum(1), self.holds.shape[1]
        least = np.maximum(full - (self.queue >= 0).sum(1), 0)
        most = np.minimum(self.allowed.sum(1), np.minimum(full, self.max_ads))
        count = np.clip(round(share * slots), least, most)
        best = np.argsort(-np.where(self.allowed, worth, -1.0), axis=1, kind="stable")
        best = np.pad(best, ((0, 0), (0, slots)))[:, :slots]
        ads = np.where(np.arange(slots) < count[:, None], best, -1)
        if self.place is None:
            return ads
        place = picked(self.place, np.arange(len(ads)), ads, ads.size)
        return np.take_along_axis(ads, np.argsort(place, axis=1, kind="stable"), 1)

    def changes(self, row: np.ndarray, slate: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Returns the neighbours `[X, V, K]` of slates `[X, K]`, and which are valid.

        A step either puts an ad, or none, into a slot (if the ad was in another slot, the two slots
        swap), or moves a slot's item to another slot and shifts those in between.
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
        """Ads `[D, A]` that may be shown, padded with at least one -1."""
        order = np.argsort(~self.allowed, axis=1, kind="stable")
        ads = np.where(np.take_along_axis(self.allowed, order, 1), order, -1)
        return np.pad(ads, ((0, 0), (0, 1)), constant_values=-1)[:, : self.allowed.sum(1).max() + 1]


def picked(values: Array, row: np.ndarray, places: np.ndarray, empty: float) -> np.ndarray:
    """Returns values `[D, N, ...]` at `places [X, ..., K]` of rows `[X]`; `empty` if negative."""
    found = values[row.reshape(-1, *[1] * (places.ndim - 1)), places]
    return np.where((places >= 0).reshape(*places.shape, *[1] * (values.ndim - 2)), found, empty)
