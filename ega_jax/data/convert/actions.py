"""Actions of users on items: collecting, repeats, k-core filtering, and sequences in time order."""

import array
import dataclasses
import hashlib
from collections.abc import Iterable

import numpy as np

from ega_jax.data.convert.source import Action
from ega_jax.data.ragged import Ragged


@dataclasses.dataclass(frozen=True)
class Actions:
    """A table of actions in the order of their file; ids index the lists of names."""

    user_names: list[str]
    item_names: list[str]
    user: np.ndarray  # [A] int32.
    item: np.ndarray  # [A] int32.
    time: np.ndarray  # [A] int64.
    in_time_order: bool  # whether the whole file is; see `collect`.

    @classmethod
    def collect(cls, actions: Iterable[Action]) -> "Actions":
        """Numbers users and items in the order in which they appear.

        A file is in time order if no action is earlier than the one before it, over all users,
        and not all times are equal. Only then does its order say which of two actions at the same
        time came first.
        """
        users: dict[str, int] = {}
        items: dict[str, int] = {}
        columns = [array.array("q") for _ in range(3)]
        for action in actions:
            columns[0].append(users.setdefault(action.user, len(users)))
            columns[1].append(items.setdefault(action.item, len(items)))
            columns[2].append(action.time)
        user, item, time = (np.array(column, np.int64) for column in columns)
        ordered = bool((time[1:] >= time[:-1]).all() and (time[1:] > time[:-1]).any())
        ids = user.astype(np.int32), item.astype(np.int32)
        return cls(list(users), list(items), *ids, time, ordered)

    def without_repeats(self) -> "Actions":
        """Keeps the first of the actions that share user, item and time."""
        order = np.lexsort((self.time, self.item, self.user))
        same = np.ones(max(len(order) - 1, 0), bool)
        for column in (self.user, self.item, self.time):
            same &= column[order][1:] == column[order][:-1]
        keep = np.ones(len(order), bool)
        keep[order[1:][same]] = False
        return self._select(keep)

    def k_core(self, k: int) -> "Actions":
        """The largest part in which each user and each item has `k` actions or more.

        Removing a rare item may leave a user with too few actions, and so on: the filter is
        repeated until nothing changes. Users and items are numbered anew, in the old order.
        """
        kept = self
        while True:
            user, item = kept.user, kept.item
            keep = (np.bincount(user)[user] >= k) & (np.bincount(item)[item] >= k)
            if keep.all():
                break
            kept = kept._select(keep)
        users, user = np.unique(kept.user, return_inverse=True)
        items, item = np.unique(kept.item, return_inverse=True)
        return dataclasses.replace(
            kept,
            user_names=[self.user_names[number] for number in users],
            item_names=[self.item_names[number] for number in items],
            user=user.astype(np.int32),
            item=item.astype(np.int32),
        )

    def tied(self) -> np.ndarray:
        """`[A]` whether an action shares user and time with another."""
        order = np.lexsort((self.time, self.user))
        user, time = self.user[order], self.time[order]
        same = (user[1:] == user[:-1]) & (time[1:] == time[:-1])
        tied = np.zeros(len(order), bool)
        tied[order[1:][same]] = True
        tied[order[:-1][same]] = True
        return tied

    def sequences(self) -> tuple[Ragged, Ragged]:
        """Items and times of each user in time order.

        Actions at the same time keep the order of a file that is in time order. Otherwise they
        are ordered by a hash of user and item: many files are sorted by item id, and histories in
        that order would let a model guess the next item from its id.
        """
        rank = np.zeros(len(self.time), np.uint64)
        if not self.in_time_order:
            for row in np.flatnonzero(self.tied()):
                names = self.user_names[self.user[row]], self.item_names[self.item[row]]
                rank[row] = hash_of_names(*names)
        order = np.lexsort((rank, self.time, self.user))  # A stable sort.
        counts = np.bincount(self.user, minlength=len(self.user_names))
        offsets = np.concatenate([[0], np.cumsum(counts)])
        return Ragged(self.item[order], offsets), Ragged(self.time[order], offsets)

    def _select(self, keep: np.ndarray) -> "Actions":
        columns = {name: getattr(self, name)[keep] for name in ("user", "item", "time")}
        return dataclasses.replace(self, **columns)


def hash_of_names(user: str, item: str) -> int:
    """The first 8 bytes of BLAKE2b of both names: the same in every process and for every file."""
    digest = hashlib.blake2b(f"{user}\0{item}".encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big")
