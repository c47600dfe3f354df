"""Fresh sessions of a market as training batches: simulated while they are read, never written."""

import itertools
from collections.abc import Iterator

import grain
import jax
import numpy as np

from ega_jax.data.batch_source import Batch
from ega_jax.data.market.scores import Ranker
from ega_jax.data.market.simulation import Chunk, begin, simulate
from ega_jax.data.market.world import World


class FreshSessions(grain.IterDataset[Batch]):
    """Endless batches of sessions that a market's logger serves to the market's users.

    They come in runs as long as the market's log: each starts from new histories, and goes through
    the days in order. A run's last sessions that fill no batch are left out.
    """

    def __init__(
        self, world: World, ranker: Ranker, *, batch_size: int, history_length: int, seed: int
    ):
        """Sets up the stream; nothing is simulated before the first batch.

        Args:
          world: the market; `world.config.explore` is the share of uniformly drawn slates.
          ranker: the features of items that the market's logger reads.
          batch_size: B, at most the number of sessions of the market's log.
          history_length: T; longer histories keep their most recent behaviours.
          seed: other seeds give other sessions.
        """
        super().__init__()
        if batch_size > world.config.num_sessions:
            sessions = world.config.num_sessions
            raise ValueError(f"batches of {batch_size} sessions from a market of {sessions}")
        self._world, self._ranker = world, ranker
        self._batch_size, self._key = batch_size, jax.random.key(seed)
        self._kept = slice(-history_length, None)

    def __iter__(self) -> "FreshBatches":
        """Starts from the first batch."""
        return FreshBatches(self)

    def starting_at(self, number: int) -> Iterator[Batch]:
        """Yields the batches from a number on; simulates its run from the start to find it.

        A batch has `history_poi`, `history_creative` `[B, T]`, `context` `[B, X]`, `organic`
        `[B, O]`, `shown_poi`, `shown_creative`, `shown_is_ad`, `click_poi`, `click_image`,
        `convert` and `propensity`, all `[B, K]`, and `explored` `[B]`, as
        `ega_jax.data.pipeline.train_batches` has them.
        """
        per_run = self._world.config.num_sessions // self._batch_size
        first_run, skipped = divmod(number, per_run)
        for run in itertools.count(first_run):
            yield from itertools.islice(self._run(run), skipped, None)
            skipped = 0

    def _run(self, number: int) -> Iterator[Batch]:
        """Yields the whole batches of one run."""
        size, waiting = self._batch_size, []
        start_key, key = jax.random.split(jax.random.fold_in(self._key, number))
        state = begin(start_key, self._world)
        for span, _, chunk in simulate(key, self._world, state, self._ranker):
            rows = {name: x[: span.stop - span.first] for name, x in _rows(chunk).items()}
            history = {name: x[:, self._kept] for name, x in rows.items() if "history" in name}
            waiting.append(rows | history)
            joined = {name: np.concatenate([part[name] for part in waiting]) for name in waiting[0]}
            whole = len(joined["click_poi"]) // size * size
            for first in range(0, whole, size):
                yield {name: x[first : first + size] for name, x in joined.items()}
            waiting = [{name: x[whole:] for name, x in joined.items()}]


class FreshBatches(grain.DatasetIterator[Batch]):
    """The iterator of `FreshSessions`; its state is the number of batches that it has given."""

    def __init__(self, sessions: FreshSessions):
        super().__init__()
        self._sessions = sessions
        self.set_state({"batches": 0})

    def __next__(self) -> Batch:
        """Simulates the next batch."""
        batch = next(self._rest)
        self._given += 1
        return batch

    def get_state(self) -> dict[str, int]:
        """Returns the number of batches that were given."""
        return {"batches": self._given}

    def set_state(self, state: dict[str, int]) -> None:
        """Goes on after that many batches."""
        self._given = state["batches"]
        self._rest = self._sessions.starting_at(self._given)


def _rows(chunk: Chunk) -> Batch:
    """The fields of a chunk that training reads, as in a batch of a log."""
    requests, served = chunk.requests, chunk.served
    slates, feedback = served.slates, chunk.feedback
    fields = {
        "history_poi": requests.history_poi,
        "history_creative": requests.history_creative,
        "context": requests.context,
        "organic": served.organic.poi,
        "shown_poi": slates.items,
        "shown_creative": slates.creatives,
        "shown_is_ad": slates.is_ad,
        "click_poi": feedback.click_poi,
        "click_image": feedback.click_image,
        "convert": feedback.convert,
        "propensity": served.propensity,
        "explored": served.explored,
    }
    return {name: np.asarray(field) for name, field in fields.items()}
