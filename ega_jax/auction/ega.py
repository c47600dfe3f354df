"""EGA as a system: token bids, beam search, choice by the reward model (secs. 4.3.1-2).

Bids enter in two places: the token weights of the search (21) and the values of the slates found
(24). Everything else is prepared once per request.
"""

import dataclasses
from typing import ClassVar

import chex
import jax
import jax.numpy as jnp
from flax import struct

from ega_jax.auction.contributions import contributions
from ega_jax.auction.settings import SearchSettings
from ega_jax.auction.system import (
    Allocation,
    Levers,
    Menu,
    PreparedRequest,
    System,
    SystemConfig,
    Tokens,
    allocation_of,
    pick,
    slate_value,
    visible_bids,
)
from ega_jax.generation.beam_search import Beams, beam_search
from ega_jax.generation.bidding import log_weights
from ega_jax.generation.candidates import RequestCandidates, request_candidates
from ega_jax.generation.codes import codes_of
from ega_jax.generation.compaction import map_distinct
from ega_jax.generation.creatives import choose_creatives
from ega_jax.generation.decoder import Decoder
from ega_jax.generation.joint_search import joint_search
from ega_jax.generation.slate_policy import slate_path
from ega_jax.reward import model as reward_model
from ega_jax.reward.model import Predictions
from ega_jax.types import IMPOSSIBLE, Request

_WINNERS_AT_ONCE = 4  # Chunk of distinct winning slates; there are few, as most variants share one.


@dataclasses.dataclass(frozen=True)
class EGAConfig(SearchSettings, SystemConfig):
    """Static configuration of EGA; for run-time settings see `Levers`."""


@struct.dataclass
class EGA(System[EGAConfig]):
    """The generative auction: a decoder proposes slates, the reward model chooses one."""

    decoder: Decoder

    weighs_tokens: ClassVar[bool] = True
    judged_truthful: ClassVar[bool] = True

    def encode(self, request: Request) -> PreparedRequest:
        """Encodes the history and chooses each candidate's creative in a slate of its own."""
        memory = self.encode_history(request)
        alone = request.item[:, None]
        codes = codes_of(self.items.catalogue.poi_codes, alone)
        states = self.decoder.poi_states(memory, codes)[:, :, -1]
        creative = choose_creatives(self.decoder, memory, states, alone, self.items.catalogue)
        return self.prepared_with(request, memory, creative[:, 0])

    def encode_history(self, request: Request):
        """Encodes the history of one request for the decoder."""
        history = request.history_poi, request.history_creative
        return self.decoder.encode(*history, self.items.catalogue)

    def prepared_with(self, request: Request, memory, creative: jax.Array) -> PreparedRequest:
        """Prepares one request, given the history and the creatives of candidates on their own.

        Args:
          request: one request.
          memory: its encoded history.
          creative: `[N]` int32 creative of each candidate when it is alone in a slate.
        """
        reward_memory = self.encode_for_reward(request)
        alone = request.item[:, None], creative[:, None], request.is_ad[:, None]
        prediction = reward_model.predict(
            self.reward, self.config.reward, self.items, reward_memory, *alone
        )
        return PreparedRequest(
            memory=memory,
            reward_memory=reward_memory,
            item=request.item,
            is_ad=request.is_ad & (request.item >= 0),
            creative=creative,
            quality=prediction.click_poi[:, 0],
        )

    def candidates(
        self,
        codes: jax.Array,
        is_ad: jax.Array,
        bid: jax.Array,
        levers: Levers,
        where: jax.Array,
    ) -> RequestCandidates:
        """The candidates of one request for the search, under its limits, reserve and bids.

        Args:
          codes: `[N, C]` int32 codes of the candidates.
          is_ad: `[N]` bool.
          bid: `[N]` float32 currency per click.
          levers: run-time settings.
          where: `[N]` bool, whether the candidate may be shown.
        """
        return request_candidates(
            codes,
            is_ad,
            visible_bids(bid, levers),
            where & (~is_ad | (bid >= levers.reserve)),
            max_ads=levers.max_ads,
            min_gap=levers.min_gap,
            token_bid=self.config.token_bid,
            scope=self.config.scope,
        )

    def find_menu(
        self,
        prepared: PreparedRequest,
        bid: jax.Array,
        levers: Levers,
        banned: chex.Numeric = -1,
    ) -> Menu:
        """Searches for slates and scores them with the reward model (23)-(24).

        A slate's value is `sum b_i * pctr_i + kappa * sum pctr`. It is computed with the creative
        that each item has on its own; creatives in context are chosen only for the winning slate.

        Args:
          prepared: the request.
          bid: `[N]` float32 currency per click, 0 for organic items.
          levers: run-time settings.
          banned: a candidate that must not be shown, -1 for none.

        Returns:
          The menu, in the order of the search.
        """
        codes = codes_of(self.items.catalogue.poi_codes, prepared.item)
        where = (prepared.item >= 0) & (jnp.arange(bid.shape[0]) != banned)
        beams = beam_search(
            self.decoder,
            prepared.memory,
            self.candidates(codes, prepared.is_ad, bid, levers, where),
            num_beams=self.config.num_beams,
            alpha=levers.alpha,
            beta=levers.beta,
        )
        creative = pick(prepared.creative, beams.items, -1)
        pctr = self.predict(prepared, beams.items, creative).click_poi
        return _menu(beams, pctr, bid, levers)

    def find_menus(
        self,
        prepared: PreparedRequest,
        bid: jax.Array,
        levers: Levers,
        banned: jax.Array | None = None,
    ) -> Menu:
        """Returns the result of `find_menu` for `R` variants of a request, sharing common work.

        Args:
          prepared: the request.
          bid: `[R, N]` float32 currency per click, 0 for organic items.
          levers: run-time settings.
          banned: `[R]` int32 candidate that must not be shown in a variant; none by default.

        Returns:
          The menus; all fields have a leading axis `R`.
        """
        beams = self._search_jointly(prepared, bid, levers, banned)
        slates = beams.items.reshape(-1, beams.items.shape[-1])

        def predicted(rows: jax.Array) -> jax.Array:
            creative = pick(prepared.creative, slates[rows], -1)
            return self.predict(prepared, slates[rows], creative).click_poi

        pctr = map_distinct(predicted, slates, beams.where.reshape(-1), chunk=self.config.num_beams)
        menu = jax.vmap(_menu, in_axes=(0, 0, 0, None))
        return menu(beams, pctr.reshape(beams.items.shape), bid, levers)

    def _search_jointly(self, prepared, bid, levers, banned) -> Beams:
        """The beams of each variant; all fields have a leading axis `R`."""
        codes = codes_of(self.items.catalogue.poi_codes, prepared.item)
        where = jnp.broadcast_to(prepared.item >= 0, bid.shape)
        if banned is not None:
            where &= jnp.arange(prepared.item.shape[0]) != banned[:, None]
        index = lambda b, w: self.candidates(codes, prepared.is_ad, b, levers, w)
        return joint_search(
            self.decoder,
            prepared.memory,
            jax.vmap(index)(bid, where),
            num_beams=self.config.num_beams,
            alpha=levers.alpha,
            beta=levers.beta,
        )

    def allocate(
        self, prepared: PreparedRequest, bid: jax.Array, levers: Levers
    ) -> tuple[Allocation, Menu]:
        """Chooses the slate of the menu with the highest value (24); see `System.allocate`."""
        menu = self.find_menu(prepared, bid, levers)
        best = jnp.argmax(menu.value)
        shown = self._dress(prepared, levers, menu.candidate[best], menu.states[best])
        return allocation_of(prepared, bid, menu, best, *shown), menu

    def allocate_each(
        self,
        prepared: PreparedRequest,
        bid: jax.Array,
        levers: Levers,
        banned: jax.Array | None = None,
    ) -> tuple[Allocation, Menu]:
        """Runs one joint search; chooses creatives once per distinct winning slate."""
        menu = self.find_menus(prepared, bid, levers, banned)
        best = jnp.argmax(menu.value, axis=-1)
        variant = jnp.arange(bid.shape[0])
        slates, states = menu.candidate[variant, best], menu.states[variant, best]
        dress = jax.vmap(lambda row: self._dress(prepared, levers, slates[row], states[row]))
        everywhere = jnp.ones(bid.shape[0], bool)
        shown = map_distinct(dress, slates, everywhere, chunk=_WINNERS_AT_ONCE)
        allocation = jax.vmap(lambda *x: allocation_of(prepared, *x))(bid, menu, best, *shown)
        return allocation, menu

    def _dress(self, prepared, levers, candidate, states) -> tuple[jax.Array, Predictions]:
        """Chooses the creatives `[K]` of a winning slate and predicts the responses to it."""
        item = pick(prepared.item, candidate, -1)
        in_context = choose_creatives(
            self.decoder, prepared.memory, states, item, self.items.catalogue
        )
        alone = pick(prepared.creative, candidate, -1)
        creative = jnp.where(levers.bid_free, alone, in_context)
        return creative, self.predict(prepared, candidate, creative)

    def contributions(
        self, prepared: PreparedRequest, bid: jax.Array, levers: Levers, candidate: jax.Array
    ) -> jax.Array:
        """Marginal contributions (31); searches without an item only if the whole menu has it."""
        del candidate  # `contributions` finds the same winning slate.
        batch = jax.tree.map(lambda x: x[None], prepared)
        _, found = contributions(self, batch, bid[None], levers)
        return found[0]

    def tokens(
        self, prepared: PreparedRequest, bid: jax.Array, levers: Levers, candidate: jax.Array
    ) -> Tokens:
        """Codes of the slate's items with their logits, bids and weights, each `[K, C]`."""
        codes = codes_of(self.items.catalogue.poi_codes, prepared.item)
        where = prepared.item >= 0
        path = slate_path(self.candidates(codes, prepared.is_ad, bid, levers, where), candidate)
        logits = self.decoder.slate_logits(prepared.memory, path.codes)
        token_bid = jnp.max(path.options.bid, axis=-1, where=path.is_taken, initial=0.0)
        return Tokens(
            codes=path.codes,
            logit=jnp.take_along_axis(logits, path.codes[..., None], axis=-1)[..., 0],
            token_bid=token_bid,
            weight=jnp.exp(log_weights(token_bid, levers.alpha, levers.beta)),
        )


def _menu(beams: Beams, pctr: jax.Array, bid: jax.Array, levers: Levers) -> Menu:
    value = slate_value(pick(bid, beams.items, 0.0), pctr, levers.kappa)
    return Menu(
        candidate=beams.items,
        pctr=pctr,
        value=jnp.where(beams.where, value, IMPOSSIBLE),
        where=beams.where,
        log_z=beams.log_z.sum(-1),
        states=beams.states,
    )
