"""The logging policy against an enumeration of every slate that the rules allow."""

import collections
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.data.market import policy, scores
from ega_jax.data.market.config import MarketConfig
from ega_jax.data.market.requests import Book, Requests, Slates

K, MAX_ADS, WIDTH = 3, 2, 4
CONFIG = MarketConfig(num_slots=K, max_ads=MAX_ADS, num_organic=4, explore=0.3)
ADS, ORGANIC = [5, 0, 3], [6, 2, 4, 1]  # POIs.
BOOK = Book(np.array([*ADS, -1]), np.array([1.5, 0.6, 4.0, 0.0], np.float32))
OWNED = {poi: list(range(3 * poi, 3 * poi + 2 + poi % 2)) for poi in range(8)}  # Creatives.


@pytest.fixture(scope="module")
def ranker():
    rng = np.random.default_rng(0)
    table = [OWNED[poi] + [-1] * (3 - len(OWNED[poi])) for poi in range(8)]
    return scores.Ranker(
        poi=jnp.asarray(0.4 * rng.normal(size=(8, WIDTH + 3)), jnp.float32),
        creative=jnp.asarray(0.4 * rng.normal(size=(24, WIDTH)), jnp.float32),
        poi_creatives=jnp.asarray(table, jnp.int32),
    )


def requests(count):
    """The same request, `count` times."""
    rng = np.random.default_rng(1)
    context = rng.normal(size=7).astype(np.float32)
    rows = {"user": 0, "history_poi": [-1, 3, 1, 7, 2], "history_creative": [-1, 9, 3, 22, 6]}
    tiled = {
        name: jnp.asarray(np.tile(x, (count, 1)[: 1 + np.ndim(x)])) for name, x in rows.items()
    }
    return Requests(**tiled, context=jnp.asarray(np.tile(context, (count, 1))))


def softmax(values):
    weights = [math.exp(value) for value in values]
    return [weight / sum(weights) for weight in weights]


class Oracle:
    """Scores and chances of one request, by loops."""

    def __init__(self, ranker):
        request = jax.tree.map(lambda x: np.asarray(x)[0], requests(1))
        self.ranker = jax.tree.map(np.asarray, ranker)
        z, style = self.ranker.poi[:, :WIDTH], self.ranker.creative
        seen = [poi for poi in request.history_poi if poi >= 0]
        seen_style = [c for c in request.history_creative if c >= 0]
        self.liked = scores.RECENT * z[seen[-3:]].mean(axis=0) + scores.WHOLE * z[seen].mean(axis=0)
        self.liked_style = scores.CREATIVE * style[seen_style].mean(axis=0)
        self.place = request.context[:2]

    def score(self, poi, bid=1.0):
        """The square is minus the last feature, so nearness is a squared distance but for |c|^2."""
        feature = self.ranker.poi[poi]
        place, square = feature[WIDTH : WIDTH + 2], -feature[-1]
        near = scores.NEAR * (2 * place @ self.place - square)
        return feature[:WIDTH] @ self.liked + near + scores.LOG_BID * math.log(bid)

    def creative(self, poi, creative):
        chances = softmax([self.ranker.creative[c] @ self.liked_style for c in OWNED[poi]])
        return chances[OWNED[poi].index(creative)]

    def slates(self):
        """Every slate: its slots (item, creative, is_ad), and both chances of each slot."""
        yield from self._grow((), ())

    def _grow(self, slots, chances):
        k = len(slots)
        unused = [ad for ad in ADS if ad not in [slot[0] for slot in slots]]
        allowed = sum(slot[2] for slot in slots) < MAX_ADS
        rates = [(policy.AD_RATE, policy.EVEN), (1 - policy.AD_RATE, 1 - policy.EVEN)]
        organic = ORGANIC[sum(not slot[2] for slot in slots)]
        options = [(organic, False, rates[1] if allowed else (1.0, 1.0))]
        bids = dict(zip(BOOK.poi.tolist(), BOOK.bid.tolist(), strict=True))
        drawn = softmax([self.score(ad, bids[ad]) for ad in unused])
        for ad, chance in zip(unused if allowed else [], drawn, strict=allowed):
            options.append((ad, True, (rates[0][0] * chance, rates[0][1] / len(unused))))
        for item, is_ad, (logger, uniform) in options:
            for creative in OWNED[item]:
                p = logger * self.creative(item, creative), uniform / len(OWNED[item])
                longer = (*slots, (item, creative, is_ad))
                if k == K - 1:
                    yield longer, (*chances, p)
                else:
                    yield longer, (*chances, (0.0, p[1] * policy.END))
                    yield from self._grow(longer, (*chances, (p[0], p[1] * (1 - policy.END))))


def mixture(chances):
    """The chance of each slot given those above, of the mixture of both policies."""
    whole, result = 1.0, []
    logger = uniform = 1.0
    for a, b in chances:
        logger, uniform = logger * a, uniform * b
        mixed = (1 - CONFIG.explore) * logger + CONFIG.explore * uniform
        result.append(mixed / whole)
        whole = mixed
    return result


def as_arrays(slates):
    """Slots of slates as `Slates`, -1 in empty slots."""
    table = np.full((len(slates), K, 3), -1)
    for row, slots in zip(table, slates, strict=True):
        row[: len(slots)] = slots
    return Slates(jnp.asarray(table[..., 0]), jnp.asarray(table[..., 1]), table[..., 2] == 1)


def propensity(ranker, slates):
    organic = jnp.tile(jnp.asarray(ORGANIC), (len(slates.items), 1))
    asked = requests(len(slates.items))
    return np.asarray(policy.propensity(ranker, asked, BOOK, organic, slates, CONFIG))


def test_propensities_of_all_slates_sum_to_one(ranker):
    slates = [slots for slots, _ in Oracle(ranker).slates()]
    assert len(slates) == len(set(slates)) == 444
    found = propensity(ranker, as_arrays(slates)).prod(axis=1, dtype=np.float64)
    assert found.min() > 0
    assert found.sum() == pytest.approx(1, abs=1e-5)


def test_propensities_equal_the_loop_oracle(ranker):
    slates, chances = zip(*Oracle(ranker).slates(), strict=True)
    found = propensity(ranker, as_arrays(slates))
    for slots, pairs, row in zip(slates, chances, found, strict=True):
        np.testing.assert_allclose(row[: len(slots)], mixture(pairs), rtol=2e-4)
        assert np.all(row[len(slots) :] == 1)


@pytest.mark.parametrize(
    "slots",
    [
        [(5, 15, True), (0, 0, True), (3, 9, True)],  # Too many ads.
        [(5, 15, True), (5, 16, True)],  # An ad twice.
        [(2, 6, False)],  # Not the next organic item.
        [(6, 18, True)],  # No ad of the book.
        [(6, 15, False)],  # The creative of another POI.
        [(7, 21, False)],  # Not offered.
    ],
)
def test_slates_that_break_a_rule_have_propensity_zero(ranker, slots):
    found = propensity(ranker, as_arrays([slots]))[0]
    assert found.prod() == 0
    assert np.isfinite(found).all()


def drawn(ranker, explored):
    """Draws one slate for each entry of `explored`."""
    count = len(explored)
    organic = policy.Organic(jnp.tile(jnp.asarray(ORGANIC), (count, 1)), jnp.zeros((count, 4)))
    slates, _ = policy.draw_slates(
        jax.random.key(0), ranker, requests(count), BOOK, organic, jnp.asarray(explored), CONFIG
    )
    return jax.device_get(slates)


@pytest.mark.parametrize("explored", [False, True])
def test_slates_come_as_often_as_their_chance_says(ranker, explored):
    count = 40_000
    slates = drawn(ranker, np.full(count, explored))
    seen = collections.Counter()
    for items, creatives, is_ad in zip(slates.items, slates.creatives, slates.is_ad, strict=True):
        slots = zip(items.tolist(), creatives.tolist(), is_ad.tolist(), strict=True)
        seen[tuple(slot for slot in slots if slot[0] >= 0)] += 1
    expected = {
        slots: math.prod(pair[explored] for pair in chances)
        for slots, chances in Oracle(ranker).slates()
    }
    assert set(seen) <= {slots for slots, p in expected.items() if p > 0}
    for slots, p in expected.items():
        assert abs(seen[slots] - count * p) < 5 * math.sqrt(count * p) + 3


def test_the_share_of_uniform_slates_and_the_scores_shown(ranker):
    asked, others = requests(4000), jnp.asarray([*ORGANIC, 7, -1])
    served = policy.serve(jax.random.key(3), ranker, asked, BOOK, others, CONFIG)
    assert np.mean(served.explored) == pytest.approx(CONFIG.explore, abs=0.03)
    oracle, bids = Oracle(ranker), dict(zip(BOOK.poi.tolist(), BOOK.bid.tolist(), strict=True))
    slates = jax.device_get(served.slates)
    for b in range(50):
        for item, is_ad, score in zip(
            slates.items[b], slates.is_ad[b], served.score[b], strict=True
        ):
            if item >= 0:
                bid = bids[int(item)] if is_ad else 1.0
                assert score == pytest.approx(oracle.score(item, bid), abs=1e-4)


def test_organic_lists_are_drawn_by_score(ranker):
    others = jnp.asarray([*ORGANIC, 7, -1])
    organic = policy.organic_list(jax.random.key(0), ranker, requests(20_000), others, 4)
    oracle = Oracle(ranker)
    first = np.bincount(organic.poi[:, 0], minlength=8) / 20_000
    for poi, p in zip([*ORGANIC, 7], softmax(map(oracle.score, [*ORGANIC, 7])), strict=True):
        assert first[poi] == pytest.approx(p, abs=0.02)
    assert all(len(set(row)) == 4 for row in np.asarray(organic.poi[:100]).tolist())
    assert organic.poi.min() >= 0


def test_an_empty_book_leaves_organic_items(ranker):
    empty = Book(jnp.full(4, -1), jnp.zeros(4))
    config = dataclasses.replace(CONFIG, explore=1.0)
    served = policy.serve(
        jax.random.key(0), ranker, requests(50), empty, jnp.asarray(ORGANIC), config
    )
    assert not np.any(served.slates.is_ad)
    assert np.all((served.propensity > 0) & (served.propensity <= 1))
    assert np.any(served.slates.items[:, 1:] < 0)
