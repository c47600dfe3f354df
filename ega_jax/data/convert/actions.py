"""Actions of users on items: collecting, k-core filtering, and sequences in time order."""

import dataclasses
from collections.abc import Iterable

import numpy as np

from ega_jax.data.convert.source import Action
from ega_jax.data.ragged import Ragged


@dataclasses.dataclass(frozen=True)
class Actions:
    """A table of actions; users and items are numbered by their names' places."""

    user_names: list[str]
    item_names: list[str]
    user: np.ndarray  # [A] int32.
    item: np.ndarray  # [A] int32.
    time: np.ndarray  # [A] int64.

    @classmethod
    def collect(cls, actions: Iterable[Action]) -> "Actions":
        """Numbers users and items in the order in which they appear."""
        users: dict[str, int] = {}
        items: dict[str, int] = {}
        rows = [
            (
                users.setdefault(action.user, len(users)),
                items.setdefault(action.item, len(items)),
                action.time,
            )
            for action in actions
        ]
        user, item, time = np.array(rows, np.int64).reshape(-1, 3).T
        return cls(list(users), list(items), user.astype(np.int32), item.astype(np.int32), time)

    def k_core(self, k: int) -> "Actions":
        """The largest part in which each user and each item has `k` actions or more.

        Removing a rare item may leave a user with too few actions, and so on: the filter is
        repeated until nothing changes. Users and items are numbered anew, in the old order.
        """
        user, item, time = self.user, self.item, self.time
        while True:
            keep = (np.bincount(user)[user] >= k) & (np.bincount(item)[item] >= k)
            if keep.all():
                break
            user, item, time = user[keep], item[keep], time[keep]
        users, user = np.unique(user, return_inverse=True)
        items, item = np.unique(item, return_inverse=True)
        return Actions(
            [self.user_names[number] for number in users],
            [self.item_names[number] for number in items],
            user.astype(np.int32),
            item.astype(np.int32),
            time,
        )

    def sequences(self) -> tuple[Ragged, Ragged]:
        """Items and times of each user in time order; equal times keep the order of the file."""
        order = np.lexsort((self.time, self.user))
        counts = np.bincount(self.user, minlength=len(self.user_names))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return Ragged(self.item[order], offsets), Ragged(self.time[order], offsets)
