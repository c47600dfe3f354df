"""Recall from books: TIGER's search against enumeration, budgets, and that no bid changes it."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_cascade import UPSTREAM, tiny_cascade
from tiny_models import C, K, P, T, W, tiny_ega

from ega_jax.baselines.cascade import recall as stage
from ega_jax.baselines.cascade.funnel import FunnelSettings, highest
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.generation.generator import GeneratorDecoder

CODES = np.asarray(tiny_ega().items.catalogue.poi_codes)
SIZES = (0, 7, 1, P, 5)
START = np.append(0, np.cumsum(SIZES))
RNG = np.random.default_rng(0)
POIS = np.concatenate([RNG.permutation(P)[:size] for size in SIZES])
BIDS = RNG.uniform(0.5, 5.0, POIS.size)
ROOTS = np.arange(len(SIZES), dtype=np.int32)
HISTORY = RNG.integers(-1, P, (len(SIZES), T)).astype(np.int32)
EVERY = FunnelSettings(recall_share=1.0)


def ledger(bid=BIDS, **arguments):
    return BookLedger(POIS, bid, START, CODES, W, num_slots=K, **arguments)


def tiger():
    return GeneratorDecoder(tiny_cascade().upstream.tiger, UPSTREAM.tiger)


@functools.partial(jax.jit, static_argnames="settings")
def recalled(decoder, catalogue, book, settings):
    """The ads `[books, R]` recalled from each book."""

    def one(history, root):
        memory = decoder.encode(history, history, catalogue)
        return stage.recall(decoder, memory, book, root, settings)

    return jax.vmap(one)(HISTORY, ROOTS)


def recall(settings, host=None):
    catalogue = tiny_ega().items.catalogue
    return np.asarray(recalled(tiger(), catalogue, (host or ledger()).book, settings))


def budget(number, share=1e-6):
    return FunnelSettings(recall_share=share, least_recalled=number)


@functools.cache
def logits():
    """TIGER's logits `[books, P, C, W]` of each POI's codes."""
    decoder, catalogue = tiger(), tiny_ega().items.catalogue

    @jax.jit
    @jax.vmap
    def of(history):
        memory = decoder.encode(history, history, catalogue)
        return decoder.slate_logits(memory, jnp.asarray(CODES)[:, None])[:, 0]

    return np.asarray(of(HISTORY), np.float64)


def likelihoods(root):
    """Log-likelihood of each ad of a book, by its codes: those that follow in the book sum to 1."""
    ads = range(START[root], START[root + 1])
    found = {}
    for ad in ads:
        codes, total = CODES[POIS[ad]], 0.0
        for depth in range(C):
            alike = [CODES[POIS[b]] for b in ads if np.all(CODES[POIS[b]][:depth] == codes[:depth])]
            scores = {c[depth]: np.exp(logits()[root, POIS[ad], depth, c[depth]]) for c in alike}
            total += np.log(scores[codes[depth]] / sum(scores.values()))
        found[ad] = total
    return found


@functools.partial(jax.jit, static_argnames="most")
def searched(decoder, catalogue, book, number, most):
    """The first ads `[books, most]` of a search of each book."""

    def one(history, root):
        memory = decoder.encode(history, history, catalogue)
        return stage.likeliest_ads(decoder, memory, book, root, number, most)

    return jax.vmap(one)(HISTORY, ROOTS)


def test_ads_come_by_likelihood_in_the_book_then_by_number():
    """With more beams than leaves, so that none is cut off."""
    catalogue, cuts, leaf = tiny_ega().items.catalogue, 0, CODES[POIS]
    for number in (1, 2, 3, 5, P):
        ads = np.asarray(searched(tiger(), catalogue, ledger().book, number, most=P + 1))
        for root in ROOTS:
            likely = likelihoods(root)
            ranked = sorted(likely, key=lambda ad: (-round(likely[ad], 4), *leaf[ad], ad))
            expected = ranked[:number]
            assert ads[root].tolist() == expected + [-1] * (P + 1 - len(expected))
            after = ranked[number : number + 1]
            cuts += bool(after) and np.array_equal(leaf[after[0]], leaf[expected[-1]])
    assert cuts, "a leaf was cut"


def test_the_best_survive_a_narrow_search():
    """One beam follows the likeliest code at each depth."""
    ads = recall(budget(1))
    for root in ROOTS[1:]:
        below = np.arange(START[root], START[root + 1])
        for depth in range(C):
            score = logits()[root, POIS[below], depth, CODES[POIS[below], depth]]
            below = below[CODES[POIS[below], depth] == CODES[POIS[below[score.argmax()]], depth]]
        assert ads[root].tolist() == [below.min()]
    assert ads[0].tolist() == [-1]


def test_no_bid_and_no_report_of_a_bid_changes_recall():
    """Although the lists of leaves are in the order of bids."""
    for settings in (budget(3), budget(P - 1), EVERY):
        expected = recall(settings)
        for seed in range(3):
            bid = np.random.default_rng(seed).permutation(BIDS)
            np.testing.assert_array_equal(recall(settings, ledger(bid)), expected)
        np.testing.assert_array_equal(
            recall(settings, ledger(search_bid=np.zeros(BIDS.size))), expected
        )


def test_ads_that_may_not_be_shown_are_not_recalled():
    eligible = np.random.default_rng(1).random(BIDS.size) < 0.6
    for settings in (budget(P - 1), EVERY):
        ads = recall(settings, ledger(eligible=eligible))
        for root in ROOTS:
            own = np.arange(START[root], START[root + 1])
            there = ads[root][ads[root] >= 0]
            assert sorted(there.tolist()) == own[eligible[own]].tolist()


def test_a_share_of_one_recalls_whole_books():
    ads = recall(EVERY)
    for root in ROOTS:
        there = sorted(ads[root][ads[root] >= 0].tolist())
        assert there == list(range(START[root], START[root + 1]))


def test_each_book_has_its_own_budget():
    ads = recall(FunnelSettings(recall_share=0.5, least_recalled=2))
    assert ads.shape == (len(SIZES), 5)
    assert (ads >= 0).sum(1).tolist() == [0, 4, 1, 5, 2]


@pytest.mark.parametrize(
    ("size", "number"), [(1, 20), (100, 20), (200, 20), (1000, 100), (9_000, 900), (20_000, 1000)]
)
def test_the_documented_budgets(size, number):
    """A tenth, at least 20 and at most 1,000; a book may have fewer."""
    settings = FunnelSettings()
    assert int(settings.number_of(size)) == number
    assert settings.most_of(size) == min(number, size)


def test_highest_by_sorting():
    rng = np.random.default_rng(0)
    for _ in range(20):
        ads = np.where(rng.random(6) < 0.7, rng.permutation(6), -1)
        score = rng.integers(-3, 3, 6).astype(np.float32)
        for number in (1, 4, 9):
            places = sorted(range(6), key=lambda i: (ads[i] < 0, -score[i], i))
            found = highest(jnp.asarray(ads), jnp.asarray(score), number).tolist()
            there = [place for place in places if ads[place] >= 0][:number]
            assert found[: len(there)] == there
            assert len(found) == min(number, 6)


def test_many_ads_of_one_leaf_are_cut_by_number():
    """More than fit into one step of the search for the lowest numbers."""
    size, rng = 50, np.random.default_rng(2)
    codes = np.zeros((size, C), int)
    book = BookLedger(np.arange(size), rng.random(size), [0, size], codes, W, num_slots=K).book
    leaf = jnp.array([-1, int(book.leaf[0]), -1])
    cut = jax.jit(stage.ads_of, static_argnames="most")
    for most, number in ((4, 4), (7, 5), (60, 60)):
        expected = [*range(min(number, size)), *[-1] * most][:most]
        assert cut(book, leaf, number, most=most).tolist() == expected
