"""Likelihoods of candidates by hand, and that the next item is learnt."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_log import ITEMS, SIZES, B, K, N, P, R, W, fit, random_batch, shaken

from ega_jax.baselines.cascade import tiger
from ega_jax.generation import generator
from ega_jax.generation.generator import Generator, GeneratorConfig
from ega_jax.generation.pretraining import code_tree

FULL = GeneratorConfig(width=8, num_heads=2, encoder_blocks=1, decoder_blocks=1, **SIZES)
CONFIG = tiger.tiger_config(FULL)
CATALOGUE = ITEMS.catalogue
CODES = np.asarray(CATALOGUE.poi_codes)
TREE = code_tree(CODES, W)
KEY = jax.random.key(0)
SCORE = jax.jit(lambda params, *x: tiger.item_log_probs(params, CONFIG, CATALOGUE, *x))
EXISTING = jax.jit(
    lambda params, *x: tiger.item_log_probs(params, CONFIG, CATALOGUE, *x, tree=TREE)
)
LOSS = jax.jit(jax.value_and_grad(tiger.tiger_loss(CONFIG, CATALOGUE, TREE), has_aux=True))


@pytest.fixture(scope="module")
def params():
    return shaken(jax.jit(lambda key: generator.init(key, CONFIG, CATALOGUE))(KEY))


def test_it_is_the_generator_of_one_poi():
    assert (CONFIG.num_slots, CONFIG.creatives) == (1, False)
    assert dataclasses.replace(CONFIG, num_slots=K, creatives=True) == FULL


def test_log_probs_by_hand(params):
    batch = random_batch()
    found = SCORE(params, batch["history_poi"], batch["history_creative"], batch["item"])

    @jax.jit
    def logits(poi, codes):
        forward = lambda model: model(model.encode(poi, poi, CATALOGUE), codes).poi
        return Generator(CONFIG).apply({"params": params}, method=forward)

    for place in range(N):
        codes = CODES[batch["item"][:, place]]
        scores = np.asarray(logits(batch["history_poi"], codes[:, None]), np.float64)[:, 0]
        for row in range(B):
            expected = 0.0
            for layer, code in enumerate(codes[row]):
                exps = np.exp(scores[row, layer])
                expected += np.log(exps[code] / exps.sum())
            assert found[row, place] == pytest.approx(expected, abs=1e-4)


def test_over_existing_codes_the_likelihoods_of_all_leaves_sum_to_one(params):
    leaves = {tuple(codes): item for item, codes in enumerate(CODES.tolist())}
    item = np.asarray(list(leaves.values()), np.int32)
    batch = random_batch()
    history = batch["history_poi"][1], batch["history_creative"][1]
    found = EXISTING(params, *history, item)
    assert np.exp(found).sum() == pytest.approx(1.0, rel=1e-4)
    assert np.exp(SCORE(params, *history, item)).sum() < 0.99


def test_creatives_and_other_candidates_are_not_looked_at(params):
    batch = random_batch()
    found = SCORE(params, batch["history_poi"], batch["history_creative"], batch["item"])
    other = (batch["item"][:, ::-1]).copy()
    moved = SCORE(params, batch["history_poi"], (batch["history_creative"] + 1) % R, other)
    np.testing.assert_allclose(moved[:, ::-1], found, atol=1e-5)


def test_loss_by_hand_with_finite_gradients(params):
    batch = random_batch()
    batch["history_poi"][0] = -1
    (loss, _), grads = LOSS(params, (), batch, KEY)
    history = batch["history_poi"], batch["history_creative"]
    found = EXISTING(params, *history, batch["target_poi"])
    total = weight = 0.0
    for row, slot in zip(*np.nonzero(batch["shown_poi"] >= 0), strict=True):
        total -= float(found[row, slot]) * batch["target_weight"][row, slot]
        weight += batch["target_weight"][row, slot]
    assert loss == pytest.approx(total / weight, rel=1e-4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_retrieval_counts_first_clicks_only():
    batch = random_batch(rows=2)
    batch["target_poi"] = np.array([[3, 4, 5], [6, 7, -1]])
    batch["target_weight"] = np.array([[0.1, 1.0, 1.0], [0.1, 0.1, 0.0]])
    for place, expected in ((0, 1.0), (7, 0.0)):
        order = np.full((2, 10), -1)
        order[0, place], order[1, 0] = 4, 0
        report = tiger.retrieval_report(lambda _, batch: order, None, [batch])  # noqa: B023
        assert report["recall@5"] == expected
        assert report["recall@10"] == 1.0
        assert report["ndcg@10"] == pytest.approx(1 / np.log2(place + 2))


def test_in_books_clicks_on_ads_count():
    batch = {"target_weight": np.ones((2, 2)), "target_poi": np.array([[3, 4], [5, 6]])}
    batch |= {"shown_is_ad": np.array([[False, True], [False, False]]), "book": np.zeros(2)}
    found = np.array([[4, 3], [5, 6]])
    assert tiger.retrieval_report(lambda *_: found, None, [batch])["ndcg@5"] == 1.0
    found[0, 0] = 7
    assert tiger.retrieval_report(lambda *_: found, None, [batch])["recall@5"] == 0.0


def test_retrieval_among_fewer_candidates_than_are_counted():
    batch = {"target_weight": np.ones((1, 1)), "target_poi": np.array([[7]])}
    report = tiger.retrieval_report(lambda *_: np.array([[3, 7, -1]]), None, [batch])
    assert report["recall@10"] == report["recall@5"] == 1.0
    assert report["ndcg@5"] == pytest.approx(1 / np.log2(3))


def test_it_learns_what_follows():
    """Users click what follows their last behaviour in a cycle of items."""
    batch = random_batch(rows=128)
    last = np.random.default_rng(0).integers(0, P, 128)
    batch["history_poi"][:, -1] = last
    batch["target_poi"] = np.where(np.arange(K) == 0, ((last + 1) % P)[:, None], 0).astype(np.int32)
    batch["target_weight"] = np.where(np.arange(K) == 0, 1.0, 0.0) * np.ones((128, 1), np.float32)
    params = jax.jit(lambda key: generator.init(key, CONFIG, CATALOGUE))(KEY)
    loss = tiger.tiger_loss(CONFIG, CATALOGUE, TREE)
    nll, params = fit(loss, params, batch, 150)
    assert np.mean(nll[-10:]) < 0.3 * np.log(P)
    everything = np.broadcast_to(np.arange(P, dtype=np.int32), (128, P))
    found = SCORE(params, batch["history_poi"], batch["history_creative"], everything)
    following = CODES[(last + 1) % P]
    assert np.mean((CODES[np.argmax(found, axis=-1)] == following).all(-1)) > 0.9
