"""EGA as a system: token bids, beam search, choice by the reward model (secs. 4.3.1-2).

Bids enter in two places: the token weights of the search (21) and the values of the slates found
(24). So does kappa, if tokens weigh by expected revenue. Everything else is prepared once per
request.
"""

import dataclasses
from collections.abc import Callable
from typing import Any, ClassVar

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.contributions import contributions
from ega_jax.auction.ecpm import as_list, competing_bids, relative_click_rates
from ega_jax.auction.settings import SearchSettings
from ega_jax.auction.system import (
    Allocation,
    Bidders,
    Levers,
    Menu,
    PreparedRequest,
    System,
    SystemConfig,
    Tokens,
    allocation_of,
    slate_value,
)
from ega_jax.generation.ad_book import AdBook, Worth
from ega_jax.generation.beam_search import Beams, beam_search, sample_slates
from ega_jax.generation.bidding import log_weights
from ega_jax.generation.candidates import Candidates, book_candidates, list_candidates
from ega_jax.generation.codes import codes_of
from ega_jax.generation.compaction import map_distinct, map_where
from ega_jax.generation.creatives import choose_creatives
from ega_jax.generation.decoder import Decoder
from ega_jax.generation.joint_search import joint_search
from ega_jax.generation.organic_queue import organic_queue, within_reach
from ega_jax.generation.reports import Report
from ega_jax.generation.slate_policy import Path, slate_path
from ega_jax.reward.model import Memory, Predictions
from ega_jax.types import IMPOSSIBLE, AnyRequest, BookRequest, Request

_PAIRS_AT_ONCE = 128  # Chunk of pairs of POI and creative, each alone in a slate.
_WINNERS_AT_ONCE = 4  # Chunk of distinct winning slates; there are few, as most variants share one.


@dataclasses.dataclass(frozen=True)
class EGAConfig(SearchSettings, SystemConfig):
    """Static configuration of EGA; for run-time settings see `Levers`."""


@struct.dataclass
class Slates:
    """Slates of one request; creative and quality are those of an item alone in a slate."""

    item: jax.Array  # [..., K] int32 POI ids, -1 in empty slots.
    is_ad: jax.Array  # [..., K] bool.
    creative: jax.Array  # [..., K] int32, -1 in empty slots.
    quality: jax.Array  # [..., K] float32 click probability, 0 in empty slots.


@struct.dataclass
class EGAMemory:
    """One request encoded for the search."""

    history_poi: jax.Array  # [T] int32.
    history_creative: jax.Array  # [T] int32.
    context: jax.Array | None  # [X] float32, as logged; None if models read none.
    encoded: Any  # History and context encoded by the decoder.
    candidates: Candidates  # Without book if it is the system's; see `EGA.candidates`.


@struct.dataclass
class EGA(System[EGAConfig]):
    """The generative auction: a decoder proposes slates, the reward model chooses one."""

    decoder: Decoder

    weighs_tokens: ClassVar[bool] = True
    judged_truthful: ClassVar[bool] = True

    @property
    def seeks_clicks(self) -> bool:
        """Whether tokens weigh by expected revenue, which depends on kappa."""
        return self.weighs_tokens and self.config.token_value == "ecpm"

    def prepare(self, request: AnyRequest, levers: Levers) -> PreparedRequest:
        """Encodes the request, and finds its ads and organic items in their book."""
        history = request.history_poi, request.history_creative
        reward_memory = self.encode_for_reward(request)
        if self.seeks_clicks:
            candidates = self._by_ecpm(request, levers, reward_memory)
        elif isinstance(request, BookRequest):
            candidates = self._of_book(request, levers)
        else:
            candidates = self._of_list(request, levers)
        return PreparedRequest(
            memory=EGAMemory(
                *history,
                request.context,
                encoded=self.decoder.encode(*history, self.items.catalogue, request.context),
                candidates=candidates,
            ),
            reward_memory=reward_memory,
            levers=levers,
        )

    def _of_list(self, request: Request, levers: Levers, **more: Any) -> Candidates:
        """Candidates of a request with a list of its own."""
        own = {"smoothing": jnp.asarray(levers.bid_free, jnp.float32)}
        rules: dict[str, Any] = own | self._rules(levers) | more
        return list_candidates(
            codes_of(self.items.catalogue.poi_codes, request.item),
            request.item,
            request.is_ad,
            request.bid,
            request.item >= 0,
            num_slots=self.decoder.config.num_slots,
            num_codes=self.config.reward.num_codes,
            **rules,
        )

    def _of_book(self, request: BookRequest, levers: Levers) -> Candidates:
        """Candidates of a request to a book; the book stays with the system."""
        book = self._own_book
        organic = within_reach(request.organic, self.decoder.config.num_slots, self.config.scope)
        number = book.num_ads + jnp.arange(organic.size, dtype=jnp.int32)
        number = jnp.where(organic >= 0, number, -1)
        codes = codes_of(self.items.catalogue.poi_codes, organic)
        queue = organic_queue(book, request.book, number, organic, codes)
        candidates = book_candidates(book, request.book, queue, **self._rules(levers))
        return dataclasses.replace(candidates, book=None)

    def _by_ecpm(self, request: AnyRequest, levers: Levers, memory: Memory) -> Candidates:
        """Candidates whose tokens weigh by expected revenue; a book becomes a list."""
        own: dict[str, Any] = {}
        if isinstance(request, BookRequest):
            slots, book = self.decoder.config.num_slots, self._own_book
            own = {"smoothing": book.smoothing, "widths": book.widths}
            request, bids = as_list(request, book, slots, self.config.scope)
            own |= bids
        model = self.reward, self.config.reward, self.items
        rate = relative_click_rates(*model, memory, request.item, request.is_ad)
        worth = Worth(rate, jnp.asarray(levers.kappa, jnp.float32))
        if own and self.config.reserve_rank:
            competes = request.is_ad & (request.bid >= 0) & (own["smoothing"] == 1)
            least = competing_bids(worth, own["search_bid"], competes, self.config.reserve_rank)
            own["own_reserve"] = jnp.maximum(least, own["own_reserve"])
        return self._of_list(request, levers, worth=worth, **own)

    @property
    def _own_book(self) -> AdBook:
        assert self.book is not None, "a request names a book, and the system has none"
        return self.book

    def _rules(self, levers: Levers) -> dict[str, Any]:
        """The rules of a slate and of token bids, as `Candidates` takes them."""
        limits = {name: getattr(levers, name) for name in ("reserve", "max_ads", "min_gap")}
        return limits | {"token_bid": self.config.token_bid, "scope": self.config.scope}

    def candidates(self, prepared: PreparedRequest) -> Candidates:
        """The items that a request may show."""
        candidates = prepared.memory.candidates
        if candidates.book is not None:
            return candidates
        return dataclasses.replace(candidates, book=self.book)

    def find_menu(self, prepared: PreparedRequest, report: Report | None = None) -> Menu:
        """Searches for slates and scores them with the reward model (23)-(24).

        A slate's value is `sum b_i * pctr_i + kappa * sum pctr`. It is computed with the creative
        that each item has on its own; creatives in context are chosen only for the winning slate.

        Args:
          prepared: the request.
          report: another bid of one ad, or its absence; default: none.

        Returns:
          The menu, in the order of the search.
        """
        candidates = self.candidates(prepared)
        if report is not None:
            candidates = candidates.reporting(report)
        beams = self._searched(beam_search, prepared, candidates, num_beams=self.config.num_beams)
        return self._valued(prepared, candidates, beams)

    def draw_menu(self, prepared: PreparedRequest, key: chex.PRNGKey, num_samples: int) -> Menu:
        """Draws slates independently from the policy instead of searching; see `find_menu`.

        Args:
          prepared: the request.
          key: random key.
          num_samples: number of slates, static.
        """
        candidates = self.candidates(prepared)
        drawn = self._searched(sample_slates, prepared, candidates, key, num_samples=num_samples)
        return self._valued(prepared, candidates, drawn)

    def _searched(
        self,
        search: Callable[..., Beams],
        prepared: PreparedRequest,
        candidates: Candidates,
        *more: Any,
        **sizes: int,
    ) -> Beams:
        """What a search of the policy finds under the request's levers."""
        levers, encoded = prepared.levers, prepared.memory.encoded
        weights = {"alpha": levers.alpha, "beta": levers.beta}
        return search(self.decoder, encoded, candidates, *more, **sizes, **weights)

    def _valued(self, prepared: PreparedRequest, candidates: Candidates, beams: Beams) -> Menu:
        """The menu of slates, scored by the reward model."""
        slates = self._slates(prepared, candidates, beams.items)
        pctr = self.predict(prepared, slates.item, slates.creative, slates.is_ad).click_poi
        bid, reserve = candidates.bid(beams.items), candidates.reserve_of(beams.items)
        return _menu(beams, slates, bid, reserve, pctr, prepared.levers)

    def menus(self, prepared: PreparedRequest, reports: Report) -> Menu:
        """Returns the result of `find_menu` for `R` reports of a request, sharing common work."""
        candidates = self.candidates(prepared)
        num_beams = self.config.num_beams
        beams = self._searched(joint_search, prepared, candidates, reports, num_beams=num_beams)
        slates = self._slates(prepared, candidates, beams.items)
        rows = beams.items.reshape(-1, beams.items.shape[-1])
        shown = [x.reshape(rows.shape) for x in (slates.item, slates.creative, slates.is_ad)]

        def predicted(row: jax.Array) -> jax.Array:
            return self.predict(prepared, *(x[row] for x in shown)).click_poi

        pctr = map_distinct(predicted, rows, beams.where.reshape(-1), chunk=self.config.num_beams)
        bid = jax.vmap(lambda report, c: candidates.reporting(report).bid(c))(reports, beams.items)
        menu = jax.vmap(_menu, in_axes=(0, 0, 0, 0, 0, None))
        reserve, pctr = candidates.reserve_of(beams.items), pctr.reshape(beams.items.shape)
        return menu(beams, slates, bid, reserve, pctr, prepared.levers)

    def _slates(self, prepared, candidates: Candidates, chosen: jax.Array) -> Slates:
        """The items of slates `[..., K]` of candidates; each distinct item is looked at once."""
        item, is_ad = candidates.poi(chosen), candidates.is_ad(chosen)
        rows = jnp.stack([item.reshape(-1), is_ad.reshape(-1).astype(jnp.int32)], axis=1)
        alone = lambda row: self.alone(prepared, rows[row, 0], rows[row, 1] > 0)
        found = map_distinct(alone, rows, rows[:, 0] >= 0, chunk=self.config.num_beams)
        creative, quality = (x.reshape(chosen.shape) for x in found)
        return Slates(item, is_ad, jnp.where(item >= 0, creative, -1), quality)

    def alone(
        self, prepared: PreparedRequest, item: jax.Array, is_ad: jax.Array
    ) -> tuple[jax.Array, jax.Array]:
        """Creatives and click probabilities of POIs `[X]`, each alone in a slate, both `[X]`.

        Of several creatives it takes the one that the reward model expects most clicks from.
        """
        options = self.creatives_of(prepared, item)
        where = (options >= 0).at[:, 0].set(True)  # A POI without creatives is shown without one.

        def clicks(pair: jax.Array) -> jax.Array:
            row, option = jnp.divmod(pair, options.shape[1])
            slate = item[row], options[row, option], is_ad[row]
            return self.predict(prepared, *(x[:, None] for x in slate)).click_poi[:, 0]

        rate = map_where(clicks, where.reshape(-1), chunk=_PAIRS_AT_ONCE)
        rate = jnp.where(where, rate.reshape(options.shape), -1.0)
        best = jnp.argmax(rate, axis=1)[:, None]
        creative, quality = (jnp.take_along_axis(x, best, axis=1)[:, 0] for x in (options, rate))
        return creative, quality

    def creatives_of(self, prepared: PreparedRequest, item: jax.Array) -> jax.Array:
        """The creatives `[X, M]` that each POI `[X]` may be shown with, -1 for none."""
        catalogue, history = self.items.catalogue, prepared.memory.encoded
        if self.config.creatives_by == "clicks":
            owned = jnp.where(item[:, None] >= 0, catalogue.poi_creatives[item], -1)
            return owned if owned.shape[1] else jnp.full((item.size, 1), -1, jnp.int32)
        codes = codes_of(catalogue.poi_codes, item[:, None])
        states = self.decoder.poi_states(history, codes)[:, :, -1]
        return choose_creatives(self.decoder, history, states, item[:, None], catalogue)

    def allocate(self, prepared: PreparedRequest) -> tuple[Allocation, Menu]:
        """Chooses the slate of the menu with the highest value (24); see `System.allocate`."""
        menu = self.find_menu(prepared)
        best = jnp.argmax(menu.value)
        slate = (x[best] for x in (menu.item, menu.creative, menu.is_ad, menu.states))
        return allocation_of(menu, best, *self._dress(prepared, *slate)), menu

    def allocate_each(self, prepared: PreparedRequest, reports: Report) -> tuple[Allocation, Menu]:
        """Runs one joint search; chooses creatives once per distinct winning slate."""
        menu = self.menus(prepared, reports)
        best = jnp.argmax(menu.value, axis=-1)
        variant = jnp.arange(best.shape[0])
        slates = [x[variant, best] for x in (menu.item, menu.creative, menu.is_ad, menu.states)]
        dress = jax.vmap(lambda row: self._dress(prepared, *(x[row] for x in slates)))
        everywhere = jnp.ones(best.shape[0], bool)
        rows = menu.candidate[variant, best]
        shown = map_distinct(dress, rows, everywhere, chunk=_WINNERS_AT_ONCE)
        return jax.vmap(allocation_of)(menu, best, *shown), menu

    def _dress(self, prepared, item, alone, is_ad, states) -> tuple[jax.Array, Predictions]:
        """Chooses the creatives `[K]` of a winning slate and predicts the responses to it."""
        creative = alone
        if self.config.creatives_by == "likelihood":
            in_context = choose_creatives(
                self.decoder, prepared.memory.encoded, states, item, self.items.catalogue
            )
            creative = jnp.where(prepared.levers.bid_free, alone, in_context)
        return creative, self.predict(prepared, item, creative, is_ad)

    def contributions(self, prepared: PreparedRequest, shown: Allocation) -> jax.Array:
        """Marginal contributions (31); searches without an item only if the whole menu has it."""
        del shown  # `contributions` finds the same winning slate.
        batch = jax.tree.map(lambda x: x[None], prepared)
        return contributions(self, batch).contribution[0]

    def path(self, prepared: PreparedRequest, candidate: jax.Array) -> Path:
        """The decoding steps of a slate `[K]` of candidates, -1 in empty slots."""
        return slate_path(self.candidates(prepared), candidate)

    def tokens(self, prepared: PreparedRequest, shown: Allocation) -> Tokens:
        """Codes of the slate's items with their logits, bids and weights, each `[K, C]`."""
        path = self.path(prepared, shown.candidate)
        logits = self.decoder.slate_logits(prepared.memory.encoded, path.codes)
        token_bid = path.token_bids
        return Tokens(
            codes=path.codes,
            logit=jnp.take_along_axis(logits, path.codes[..., None], axis=-1)[..., 0],
            token_bid=token_bid,
            weight=jnp.exp(log_weights(token_bid, prepared.levers.alpha, prepared.levers.beta)),
        )


def _menu(beams: Beams, slates: Slates, bid, reserve, pctr: jax.Array, levers: Levers) -> Menu:
    """The menu of one search."""
    value = slate_value(bid, pctr, levers.kappa)
    ad = jnp.where(slates.is_ad & beams.where[:, None], beams.items, -1)
    rivals = Bidders(ad=ad, bid=bid, quality=slates.quality, item=slates.item)
    return Menu(
        candidate=beams.items,
        **vars(slates),
        bid=bid,
        reserve=reserve,
        pctr=pctr,
        value=jnp.where(beams.where, value, IMPOSSIBLE),
        where=beams.where,
        log_z=beams.log_z.sum(-1),
        states=beams.states,
        rivals=jax.tree.map(lambda x: x.reshape(-1), rivals),
    )
