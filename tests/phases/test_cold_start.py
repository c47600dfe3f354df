"""Items that come late: tokenizers are not fitted on them, and their retrieval is told apart."""

import dataclasses

import jax
import numpy as np
import pytest
from tiny_generator import CATALOGUE, CONFIG

from ega_jax.evaluation.interest import InterestEvaluator
from ega_jax.phases.tokenization import UNSEEN, TokenizerSettings, tokenize
from ega_jax.training.mesh import data_mesh

N, LATE = 40, 6
EMBEDDINGS = np.random.default_rng(0).normal(size=(N, 5)).astype(np.float32)
SEEN = ~np.isin(np.arange(N), np.random.default_rng(1).permutation(N)[:LATE])
SETTINGS = TokenizerSettings(kind="kmeans", num_layers=2, num_codes=8, num_iterations=5)


def tokens(workdir, embeddings, seen=None, **changes):
    return tokenize(
        "poi",
        embeddings,
        dataclasses.replace(SETTINGS, **changes),
        workdir=workdir,
        config={},
        mesh=data_mesh(jax.devices()[:1]),
        seed=0,
        seen=seen,
    )


@pytest.mark.parametrize("disambiguate", [False, True])
def test_late_items_change_no_code_of_the_others(tmp_path, disambiguate):
    changes = {"disambiguate": disambiguate}
    alone = tokens(tmp_path / "alone", EMBEDDINGS[SEEN], **changes)
    whole = tokens(tmp_path / "whole", EMBEDDINGS, lambda: SEEN, **changes)
    np.testing.assert_array_equal(whole.codes[SEEN], alone.codes)
    moved = EMBEDDINGS.copy()
    moved[~SEEN] += 100.0
    again = tokens(tmp_path / "moved", moved, lambda: SEEN, **changes)
    np.testing.assert_array_equal(again.codes[SEEN], alone.codes)
    assert whole.report[UNSEEN] == pytest.approx(LATE / N)
    assert UNSEEN not in alone.report
    if disambiguate:
        assert len(np.unique(whole.codes, axis=0)) == N


def test_a_log_that_saw_all_has_the_codes_of_all(tmp_path):
    everyone = np.ones(N, bool)
    found = tokens(tmp_path / "log", EMBEDDINGS, lambda: everyone)
    np.testing.assert_array_equal(found.codes, tokens(tmp_path / "all", EMBEDDINGS).codes)
    assert found.report[UNSEEN] == 0.0


def test_restored_tokens_do_not_ask_again(tmp_path):
    first = tokens(tmp_path, EMBEDDINGS, lambda: SEEN)

    def never():
        raise AssertionError

    again = tokens(tmp_path, EMBEDDINGS, never)
    np.testing.assert_array_equal(again.codes, first.codes)
    assert again.report[UNSEEN] == first.report[UNSEEN]


def test_retrieval_of_old_and_new_items_apart():
    """By hand: items 2 and 5 are new; the second request does not count."""
    new = np.isin(np.arange(9), [2, 5])
    ranked = np.tile(np.arange(10), (4, 1))  # Item p has rank p.
    rows = {
        "ranked": ranked,
        "target": np.array([2, 5, 7, 5]),
        "taken": np.array([True, False, True, True]),
    }
    evaluator = InterestEvaluator(CONFIG, CATALOGUE, None, 10, new_items=new)
    found = evaluator._by_age(rows)
    assert found["recall@5_new"] == 0.5
    assert found["recall@10_new"] == 1.0
    assert (found["recall@5_old"], found["recall@10_old"]) == (0.0, 1.0)
    assert found["ndcg@10_new"] == pytest.approx((1 / np.log2(4) + 1 / np.log2(7)) / 2)
    assert evaluator._by_age(rows | {"target": np.array([0, 5, 7, 1])}) == {}
    assert dataclasses.replace(evaluator, new_items=None)._by_age(rows) == {}
