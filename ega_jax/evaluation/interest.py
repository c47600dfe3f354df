"""Evaluating a pre-trained generator without bids: likelihood, retrieval, creatives."""

import dataclasses
import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from ega_jax.evaluation.retrieval import recall_ndcg, without_seen
from ega_jax.generation.ad_book import AdBook
from ega_jax.generation.beam_search import beam_search
from ega_jax.generation.book_ledger import BookLedger
from ega_jax.generation.candidates import Candidates, book_candidates, list_candidates
from ega_jax.generation.codes import codes_of
from ega_jax.generation.creatives import creative_log_probs
from ega_jax.generation.generator import GeneratorConfig, GeneratorDecoder
from ega_jax.generation.organic_queue import organic_queue
from ega_jax.generation.pretraining import CodeTree, sessions_of, slate_nll
from ega_jax.phases.pretraining import Pretraining
from ega_jax.types import Catalogue, Params

Batch = dict[str, Any]
KS = (5, 10)
_CREATIVES_AT_A_TIME = 64  # Bounds the memory of the logits, [..., 64, C, W].


@dataclasses.dataclass(frozen=True)
class InterestEvaluator:
    """Measures a generator without bids; compiled once and reused for all parameters.

    Attributes:
      config: the generator's config.
      catalogue: the items' codes.
      everything: the whole catalogue as a book; `None`: each request has its own candidates.
      num_beams: `S` of the search, at least 10.
      tree: the codes over which likelihoods are normalised, as in training; see `item_nll`.
      creative_unigram: `[C, W]` log-probabilities of creative codes regardless of context, the
        baseline of `nll_creative`; `None` without creatives.
      new_items: `[P]` bool, items that training never saw; `None` if it saw all.
    """

    config: GeneratorConfig
    catalogue: Catalogue
    everything: AdBook | None
    num_beams: int
    tree: CodeTree | None = None
    creative_unigram: jax.Array | None = None
    new_items: np.ndarray | None = None

    def __call__(self, params: Params, batches: Iterable[Batch]) -> dict[str, float]:
        """Measures likelihood over all slots with a target, and retrieval of one slot per request.

        Retrieval takes the slot of the largest target weight, the first one if there are ties.

        Args:
          params: the generator's parameters.
          batches: batches with the fields of `Sessions`; if `everything` is `None`, also with
            those of `Request`.

        Returns:
          `nll_poi`, `nll_creative`: nats per slot, averaged by target weight.
          `recall@k`, `ndcg@k`: over requests whose retrieved slot has weight 1 (was clicked).
          `unseen_*`, if `everything` is given: the same without the history's items in the ranking.
          `*_old`, `*_new`, if a retrieved slot shows a new item: retrieval of old and of new items.
          With creatives also `nll_creative_unigram` (of the baseline), `creative_mrr` (the mean
          reciprocal rank of the true creative, see `_creative_ranks`) and `creative_top1`.
        """
        rows = [jax.device_get(self._measure(params, batch)) for batch in batches]
        joined = {name: np.concatenate([row[name] for row in rows]) for name in rows[0]}
        return _means(joined) | self._by_age(joined)

    def _by_age(self, rows: dict[str, np.ndarray]) -> dict[str, float]:
        """Retrieval of old and of new items apart; empty if no target is new."""
        if self.new_items is None:
            return {}
        is_new = self.new_items[np.maximum(rows["target"], 0)]
        if not (rows["taken"] & is_new).any():
            return {}
        figures = {}
        for age, items in (("old", ~is_new), ("new", is_new)):
            where = rows["taken"] & items
            found = recall_ndcg(rows["ranked"], rows["target"], KS, where=where)
            figures |= {f"{name}_{age}": float(value) for name, value in found.items()}
        return figures

    @functools.cached_property
    def _measure(self) -> Callable[[Params, Batch], dict[str, jax.Array]]:
        return jax.jit(self._measure_batch)

    def _measure_batch(self, params: Params, batch: Batch) -> dict[str, jax.Array]:
        """Returns per-row measurements `[B, ...]` of one batch."""
        sessions = sessions_of(batch)
        nll_poi, nll_creative = slate_nll(params, self.config, self.catalogue, sessions, self.tree)
        slot = jnp.argmax(sessions.target_weight, axis=-1)[:, None]
        pick = lambda x: jnp.take_along_axis(x, slot, axis=1)[:, 0]
        rows = {
            "weight": sessions.target_weight,
            "nll_poi": nll_poi,
            "nll_creative": nll_creative,
            "has_creative": sessions.target_creative >= 0,
            "taken": pick(sessions.target_weight) == 1,
            "target": pick(sessions.target_poi),
            "ranked": self._retrieve(params, batch),
        }
        if self.everything is not None:
            rows["unseen"] = without_seen(rows["ranked"], batch["history_poi"])
        if self.creative_unigram is not None:
            rows["creative_rank"] = self._creative_ranks(params, sessions)
            codes = codes_of(self.catalogue.creative_codes, sessions.target_creative)
            layers = jnp.arange(self.config.num_layers)
            rows["nll_creative_unigram"] = -self.creative_unigram[layers, codes].sum(-1)
        return rows

    def _retrieve(self, params: Params, batch: Batch) -> jax.Array:
        """Returns item ids `[B, S]`, best first, of a search for one item without bids."""
        decoder = GeneratorDecoder(params, self.config)

        def one(history_poi, history_creative, context, item):
            memory = decoder.encode(history_poi, history_creative, self.catalogue, context)
            candidates = self._candidates(item)
            beams = beam_search(decoder, memory, candidates, num_beams=self.num_beams, num_slots=1)
            return jnp.where(beams.where, candidates.poi(beams.items[:, 0]), -1)

        history = batch["history_poi"]
        item = batch["item"] if self.everything is None else history
        return jax.vmap(one)(history, batch["history_creative"], batch.get("context"), item)

    def _candidates(self, item: jax.Array) -> Candidates:
        """All items of the catalogue, or those of one request `[N]`, as ads that bid 0."""
        if self.everything is not None:
            nothing = jnp.full(1, -1, jnp.int32)
            codes = codes_of(self.catalogue.poi_codes, nothing)
            queue = organic_queue(self.everything, 0, nothing, nothing, codes)
            return book_candidates(self.everything, 0, queue)
        return list_candidates(
            codes_of(self.catalogue.poi_codes, item),
            item,
            jnp.ones(item.shape, bool),
            jnp.zeros(item.shape),
            item >= 0,
            num_slots=1,
            num_codes=self.config.num_codes,
        )

    def _creative_ranks(self, params: Params, sessions) -> jax.Array:
        """Returns the rank `[B, K]`, from 0, of each slot's true creative among its POI's.

        If every POI has one creative (catalogues with one picture per item), the rank is among all
        creatives of the catalogue.
        """
        poi, true = sessions.target_poi, sessions.target_creative
        decoder = GeneratorDecoder(params, self.config)
        history = sessions.history_poi, sessions.history_creative
        memory = decoder.encode(*history, self.catalogue, sessions.context)
        states = decoder.poi_states(memory, codes_of(self.catalogue.poi_codes, poi))
        score = lambda creatives: creative_log_probs(
            decoder, memory, states[..., -1, :], poi, creatives, self.catalogue
        )
        codes = functools.partial(codes_of, self.catalogue.creative_codes)
        true = true[..., None]
        true_score = score(true)

        def num_before(others: jax.Array) -> jax.Array:
            others = jnp.broadcast_to(others, (*poi.shape, others.shape[-1]))
            is_tie = (codes(others) == codes(true)).all(-1)
            before = jnp.where(is_tie, others < true, score(others) > true_score)
            return jnp.sum(before & (others >= 0), axis=-1)

        if (owned := self.catalogue.poi_creatives).shape[-1] > 1:
            return num_before(owned[jnp.maximum(poi, 0)])
        everyone = jnp.arange(self.catalogue.creative_codes.shape[0], dtype=jnp.int32)
        rest = -everyone.size % _CREATIVES_AT_A_TIME
        blocks = jnp.pad(everyone, (0, rest), constant_values=-1).reshape(-1, _CREATIVES_AT_A_TIME)
        return lax.map(num_before, blocks).sum(0)


def evaluator_of(run: Pretraining) -> InterestEvaluator:
    """Returns the evaluator of a pre-training run.

    On sequences, whose requests have no candidates, retrieval searches the whole catalogue.
    """
    config = run.generator_config
    own_lists = run.is_ad_log and run.ad_log.books is None
    codes = run.tokens["poi"].codes
    everything = None if own_lists else catalogue_book(codes, config.num_codes)
    num_beams = run.settings.evaluation.num_beams
    unigram = creative_unigram(run) if config.creatives else None
    new = ~run.seen["poi"] if run.is_ad_log else None
    return InterestEvaluator(
        config, run.catalogue, everything, num_beams, run.loss_tree, unigram, new
    )


def catalogue_book(codes: np.ndarray, num_codes: int) -> AdBook:
    """Returns all items, with codes `[P, C]`, as a book for slates of one item, without bids."""
    item = np.arange(len(codes), dtype=np.int32)
    books = np.array([0, item.size])
    return BookLedger(item, np.zeros(item.size), books, codes, num_codes, num_slots=1).book


def creative_unigram(run: Pretraining) -> jax.Array:
    """Returns log-probabilities `[C, W]` of creative codes in the targets of one training epoch.

    Counts have the weights of the loss. Each count starts at 1, so no probability is 0.
    """
    config = run.generator_config
    codes = run.tokens["creative"].codes
    counts = np.ones((config.num_layers, config.num_codes))
    for batch in run.training_epoch():
        target, weight = batch["target_creative"], batch["target_weight"]
        known = target >= 0
        for layer, count in enumerate(counts):
            np.add.at(count, codes[target[known], layer], weight[known])
    return jnp.asarray(np.log(counts / counts.sum(-1, keepdims=True)), jnp.float32)


def _means(rows: dict[str, np.ndarray]) -> dict[str, float]:
    """Averages the per-row measurements of a split."""
    weight = rows["weight"]
    creative_weight = weight * rows["has_creative"]
    metrics = {"nll_poi": _average(rows["nll_poi"], weight)}
    metrics["nll_creative"] = _average(rows["nll_creative"], creative_weight)
    metrics |= recall_ndcg(rows["ranked"], rows["target"], KS, where=rows["taken"])
    if "unseen" in rows:
        unseen = recall_ndcg(rows["unseen"], rows["target"], KS, where=rows["taken"])
        metrics |= {f"unseen_{name}": value for name, value in unseen.items()}
    if "creative_rank" in rows:
        rank = rows["creative_rank"]
        unigram = rows["nll_creative_unigram"]
        metrics["nll_creative_unigram"] = _average(unigram, creative_weight)
        metrics["creative_mrr"] = _average(1.0 / (rank + 1.0), creative_weight)
        metrics["creative_top1"] = _average(rank == 0, creative_weight)
    return {name: float(value) for name, value in metrics.items()}


def _average(values: np.ndarray, weights: np.ndarray) -> float:
    return float(np.average(values, weights=weights)) if weights.any() else 0.0
