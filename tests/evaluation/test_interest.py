"""The evaluator against enumeration of every item and every creative, user by user."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.evaluation import interest
from ega_jax.evaluation.interest import InterestEvaluator
from ega_jax.generation import generator
from ega_jax.generation.codes import codes_of
from ega_jax.generation.generator import Generator, GeneratorConfig
from ega_jax.types import Catalogue

P, W, C, K, T, B, BEAMS = 14, 4, 2, 2, 3, 6, 12
CONFIG = GeneratorConfig(
    num_codes=W, num_layers=C, num_slots=K, history_length=T, width=16, num_heads=2, hidden=16,
    encoder_blocks=1, decoder_blocks=1,
)  # fmt: skip
UNIGRAM = np.log(np.random.default_rng(5).dirichlet(np.ones(W), C)).astype(np.float32)
POI_CODES = np.stack(np.divmod(np.arange(P) % 13, W), axis=1).astype(np.int32)  # 13 is as 0.


def catalogue_of(creatives_each):
    """POI p owns `creatives_each` creatives in a row."""
    rng = np.random.default_rng(1)
    owned = np.arange(P * creatives_each, dtype=np.int32).reshape(P, creatives_each)
    codes = rng.integers(0, W, (owned.size, C)).astype(np.int32)
    return Catalogue(jnp.asarray(POI_CODES), jnp.asarray(codes), jnp.asarray(owned))


def batch_of(seed, creatives_each, blank=0):
    rng = np.random.default_rng(seed)
    poi = rng.integers(0, P, (B, K)).astype(np.int32)
    history = rng.integers(0, P, (B, T)).astype(np.int32)
    weight = rng.choice([0.1, 1.0], (B, K)).astype(np.float32)
    some = lambda ids: ids * creatives_each + rng.integers(0, creatives_each, ids.shape)
    batch = {
        "history_poi": history,
        "history_creative": some(history).astype(np.int32),
        "target_poi": poi,
        "target_creative": np.where(rng.random((B, K)) < 0.7, some(poi), -1).astype(np.int32),
        "target_weight": weight,
        "item": np.stack([rng.permutation(P)[:10] for _ in range(B)]).astype(np.int32),
    }
    batch["item"][:, 8:] = -1
    for name, value in batch.items():
        value[B - blank :] = 0 if name == "target_weight" else -1
    return batch


@pytest.fixture(scope="module")
def params():
    fresh = jax.jit(lambda key: generator.init(key, CONFIG, catalogue_of(2)))(jax.random.key(0))
    return jax.tree.map(lambda x: x * 3 if x.ndim > 1 else x, fresh)


def teacher_forced(params, catalogue, batch, poi_codes, creative_codes):
    """Log-softmax over all codes of slates whose codes are given, `[B, K, C, W]` twice."""
    return jax.device_get(_teacher_forced(params, catalogue, batch, poi_codes, creative_codes))


@jax.jit
def _teacher_forced(params, catalogue, batch, poi_codes, creative_codes):
    def whole(model):
        memory = model.encode(batch["history_poi"], batch["history_creative"], catalogue)
        logits = model(memory, poi_codes, creative_codes)
        return jax.nn.log_softmax(logits.poi), jax.nn.log_softmax(logits.creative)

    return Generator(CONFIG).apply({"params": params}, method=whole)


def picked(log_probs, codes):
    return sum(log_probs[layer, code] for layer, code in enumerate(codes))


def item_scores(params, catalogue, batch, offered):
    """Per row `{item: log-probability}` in its first slot, among the codes that are offered."""
    creative_codes = np.zeros((B, K, C), np.int32)
    scores = [{} for _ in range(B)]
    for item, codes in enumerate(POI_CODES):
        poi_codes = np.broadcast_to(codes, (B, K, C))
        log_probs, _ = teacher_forced(params, catalogue, batch, poi_codes, creative_codes)
        for b in range(B):
            first = [i for i in offered[b] if tuple(POI_CODES[i]) == tuple(codes)][:1]
            if first != [item]:
                continue  # not offered, or another item stands for the same code.
            total = 0.0
            for layer in range(C):
                valid = {POI_CODES[i][layer] for i in offered[b]
                         if tuple(POI_CODES[i][:layer]) == tuple(codes[:layer])}  # fmt: skip
                row = np.exp(log_probs[b, 0, layer].astype(np.float64))
                total += np.log(row[codes[layer]] / sum(row[code] for code in valid))
            scores[b][item] = total
    return scores


def expected_metrics(params, catalogue, batches, everything):
    """All of the evaluator's figures by plain loops."""
    nll_poi, nll_creative, unigram, ranks, unseen, reciprocal, top = ([] for _ in range(7))
    everyone = catalogue.poi_creatives.shape[1] == 1
    for batch in batches:
        poi, creative, weight = (batch[f"target_{n}"] for n in ("poi", "creative", "weight"))
        offered = [range(P) if everything else [i for i in row if i >= 0] for row in batch["item"]]
        scores = item_scores(params, catalogue, batch, offered)
        poi_codes = codes_of(catalogue.poi_codes, poi)
        by_creative = []
        for codes in np.asarray(catalogue.creative_codes):
            creative_codes = np.broadcast_to(codes, (B, K, C))
            log_poi, log_creative = teacher_forced(
                params, catalogue, batch, poi_codes, creative_codes
            )
            by_creative.append(
                [[picked(log_creative[b, k], codes) for k in range(K)] for b in range(B)]
            )
        by_creative = np.array(by_creative)
        for b, k in np.ndindex(B, K):
            w = weight[b, k]
            if w == 0:
                continue
            nll_poi.append((w, -picked(log_poi[b, k], POI_CODES[poi[b, k]])))
            if creative[b, k] >= 0:
                true = creative[b, k]
                owned = range(P) if everyone else np.asarray(catalogue.poi_creatives)[poi[b, k]]
                above = [r for r in owned if by_creative[r, b, k] > by_creative[true, b, k] + 1e-5]
                ties = [r for r in owned if r < true and abs(
                    by_creative[r, b, k] - by_creative[true, b, k]) <= 1e-5]  # fmt: skip
                rank = len(above) + len(ties)
                unigram.append((w, -picked(UNIGRAM, catalogue.creative_codes[true])))
                nll_creative.append((w, -by_creative[true, b, k]))
                reciprocal.append((w, 1 / (rank + 1)))
                top.append((w, rank == 0))
        for b in range(B):
            k = int(np.argmax(weight[b]))
            if weight[b, k] == 1:
                best = sorted(scores[b], key=lambda i, b=b: -scores[b][i])[:BEAMS]
                ranks.append(best.index(poi[b, k]) if poi[b, k] in best else np.inf)
                new = [i for i in best if i not in np.asarray(batch["history_poi"][b])]
                unseen.append(new.index(poi[b, k]) if poi[b, k] in new else np.inf)
    mean = lambda pairs: sum(w * v for w, v in pairs) / sum(w for w, _ in pairs)
    ranks = {"": np.array(ranks)} | ({"unseen_": np.array(unseen)} if everything else {})
    metrics = {"nll_poi": mean(nll_poi), "nll_creative": mean(nll_creative)}
    metrics["nll_creative_unigram"] = mean(unigram)
    metrics |= {"creative_mrr": mean(reciprocal), "creative_top1": mean(top)}
    for k, (kind, rank) in itertools.product((5, 10), ranks.items()):
        metrics[f"{kind}recall@{k}"] = np.mean(rank < k)
        metrics[f"{kind}ndcg@{k}"] = np.mean(np.where(rank < k, 1 / np.log2(rank + 2), 0))
    return metrics


@pytest.mark.parametrize(("everything", "creatives_each"), [(True, 1), (False, 2)])
def test_all_figures_by_enumeration(monkeypatch, params, everything, creatives_each):
    monkeypatch.setattr(interest, "_CREATIVES_AT_A_TIME", 4)
    catalogue = catalogue_of(creatives_each)
    batches = [batch_of(0, creatives_each), batch_of(1, creatives_each, blank=2)]
    index = interest.catalogue_book(POI_CODES, W) if everything else None
    found = InterestEvaluator(
        CONFIG, catalogue, index, BEAMS, creative_unigram=jnp.asarray(UNIGRAM)
    )(params, batches)
    expected = expected_metrics(params, catalogue, batches, everything)
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(found[name], value, rtol=1e-4, atol=1e-5, err_msg=name)
    assert 0 < expected["recall@5"] < 1, "the case has hits and misses"
    assert 0 < expected["creative_top1"] < 1
