"""Oracles for slate generation: plain loops over every slate of a tiny request."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class TinyRequest:
    """A request small enough to list all its slates."""

    codes: np.ndarray  # [N, C]
    is_ad: np.ndarray  # [N]
    bid: np.ndarray  # [N]
    where: np.ndarray  # [N]
    max_ads: int
    min_gap: int

    def available(self, chosen):
        """Candidates that may fill the next slot after `chosen`."""
        if any(item < 0 for item in chosen):
            return []
        organic = [i for i in np.flatnonzero(self.where & ~self.is_ad) if i not in chosen][:1]
        slots = [s for s, item in enumerate(chosen) if self.is_ad[item]]
        far_enough = not slots or len(chosen) - slots[-1] - 1 >= self.min_gap
        if len(slots) >= self.max_ads or not far_enough:
            return organic
        return organic + [i for i in np.flatnonzero(self.where & self.is_ad) if i not in chosen]


@dataclasses.dataclass(frozen=True)
class RepeatingRequest(TinyRequest):
    """A request in which a POI may be both an ad and an organic item."""

    poi: np.ndarray  # [N]

    def available(self, chosen):
        """The queue skips a POI that is shown as an ad; an ad is used with its POI."""
        if any(item < 0 for item in chosen):
            return []
        pois = {self.poi[i] for i in chosen}
        queue = np.flatnonzero(self.where & ~self.is_ad).tolist()
        last = max((queue.index(i) for i in chosen if not self.is_ad[i]), default=-1)
        organic = [i for i in queue[last + 1 :] if self.poi[i] not in pois][:1]
        ads = [i for i in super().available(chosen) if self.is_ad[i] and self.poi[i] not in pois]
        return organic + ads


def random_request(rng, num_candidates, num_layers, num_codes):
    """Uneven branching, shared codes, equal bids, few or no candidates."""
    skew = rng.dirichlet(np.full(num_codes, 0.5))
    return TinyRequest(
        codes=rng.choice(num_codes, (num_candidates, num_layers), p=skew).astype(np.int32),
        is_ad=(is_ad := rng.random(num_candidates) < rng.random()),
        bid=np.where(is_ad, rng.choice([0.0, 0.5, 1.0, 3.0], num_candidates), 0).astype(np.float32),
        where=rng.random(num_candidates) < rng.choice([0.0, 0.4, 1.0], p=[0.05, 0.35, 0.6]),
        max_ads=int(rng.choice([1, 2, num_candidates])),
        min_gap=int(rng.choice([0, 0, 1, 2])),
    )


def all_slates(request, num_slots):
    """Yields every slate as `(items, codes [K, C], steps)`.

    A step is None for an empty slot, else `{code: bid}` of the codes that could have come there.
    """
    num_layers = request.codes.shape[1]

    def codes_under(prefix, available):
        under = [i for i in available if tuple(request.codes[i, : len(prefix)]) == prefix]
        if len(prefix) == num_layers:
            best = max(under, key=lambda i: (request.bid[i], request.is_ad[i], -i))
            yield best, []
            return
        bids = {}
        for i in under:
            code = int(request.codes[i, len(prefix)])
            bids[code] = max(bids.get(code, 0.0), float(request.bid[i]))
        for code in bids:
            for item, steps in codes_under((*prefix, code), available):
                yield item, [bids, *steps]

    def grow(items, steps):
        if len(items) == num_slots:
            codes = [request.codes[i] if i >= 0 else np.zeros(num_layers, int) for i in items]
            yield items, np.array(codes, np.int32), steps
            return
        available = request.available(items)
        if not available:
            yield from grow([*items, -1], [*steps, *[None] * num_layers])
        else:
            for item, more in codes_under((), available):
                yield from grow([*items, item], [*steps, *more])

    yield from grow([], [])


def slate_log_prob(logits, codes, steps, alpha, beta):
    """Sum over steps of log z (22), by hand. `logits [K, C, W]` are teacher-forced."""
    total = 0.0
    flat_logits, flat_codes = logits.reshape(len(steps), -1), codes.reshape(-1)
    for step, bids in enumerate(steps):
        if bids is None:
            continue
        score = {c: (b**alpha + beta) * np.exp(flat_logits[step, c]) for c, b in bids.items()}
        total += np.log(score[int(flat_codes[step])] / sum(score.values()))
    return total
