"""OneRec as the generator of GR: whole sessions, aligned by preference (arXiv 2502.18965).

An encoder-decoder writes a session code by code; its pre-training is that of the project's
generator (27), which it shares. Then beams of the current model are valued by the reward model's
clicks at the bids, and direct preference optimisation moves the model from the worst towards the
best of them. Bids play no part in the search. GR adds Peri-CR's creatives and prices by GSP; which
of the sessions found is shown is decided as in EGA, by expected revenue.

The decoder has no mixture of experts: at the widths compared here there is nothing to route.
"""

import dataclasses
from collections.abc import Callable, Mapping

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ega_jax.auction.alignment import join, split
from ega_jax.auction.ega import AllocationConfig, Models, find_menu, offer_with
from ega_jax.auction.system import Levers, Offer, offer_of, prepare
from ega_jax.baselines.cascade import peri_cr
from ega_jax.baselines.cascade.peri_cr import PeriCRConfig
from ega_jax.generation.candidates import RequestCandidates
from ega_jax.generation.generator import GeneratorConfig, codes_of, encode
from ega_jax.generation.pretraining import weighted_mean
from ega_jax.generation.slate_policy import Path, path_log_probs, slate_path, taken
from ega_jax.phases.auction import request_of
from ega_jax.types import Catalogue, Params, Request

Pairs = Callable[[Params, Mapping[str, jax.Array]], tuple[jax.Array, jax.Array]]


@struct.dataclass
class OneRecModels(Models):
    """Parameters of OneRec and the reward model, of Peri-CR, and what they know of the items."""

    peri_cr: Params


@dataclasses.dataclass(frozen=True)
class OneRecConfig(AllocationConfig):
    """What is compiled in."""

    peri_cr: PeriCRConfig = dataclasses.field(kw_only=True)


@offer_of.register(OneRecModels)
def _(models: OneRecModels, config: OneRecConfig, request: Request) -> Offer:
    """As EGA's, but for the creatives: Peri-CR's."""
    history, items = (request.history_poi, request.history_creative), models.items
    memory = encode(models.generator, config.generator, *history, items.catalogue)
    creative = peri_cr.choose(models.peri_cr, config.peri_cr, items, *history, request.item)
    return offer_with(models, config, request, memory, creative)


def dpo_loss(log_ratio: jax.Array, strength: float) -> jax.Array:
    """Direct preference optimisation (Rafailov et al., arXiv 2305.18290, eq. 7).

    Args:
      log_ratio: `[..., 2]` log-probability of the preferred and of the rejected session, less that
        under the reference policy.
      strength: how much a preference may move the policy; the paper's beta.

    Returns:
      `[...]` float32, `-log sigmoid(strength * difference)`.
    """
    return -jax.nn.log_sigmoid(strength * (log_ratio[..., 0] - log_ratio[..., 1]))


def best_and_worst(
    models: Models, config: AllocationConfig, levers: Levers, request: Request
) -> tuple[jax.Array, jax.Array]:
    """The sessions of one request's menu of the highest and the lowest expected revenue.

    Args:
      models: generator, reward model, items.
      config: sizes of the search.
      levers: run-time settings, bid-free.
      request: one request.

    Returns:
      Candidates `[2, K]`, -1 where a slot is empty, and whether they differ in value, `[]` bool.
    """
    offer = prepare(models, config, request)
    menu = find_menu(models, config, offer, request.bid, levers)
    best = jnp.argmax(menu.value)
    worst = jnp.argmin(jnp.where(menu.where, menu.value, jnp.inf))
    pair = jnp.stack([menu.candidate[best], menu.candidate[worst]])
    return pair, menu.value[best] > menu.value[worst]


def preference_loss(
    config: GeneratorConfig,
    part: str,
    strength: float,
    catalogue: Catalogue,
    choose: Pairs,
    index: Callable[..., RequestCandidates],
) -> Callable:
    """The loss of the preference alignment, in the form that the training loop takes.

    Args:
      config: sizes of the generator.
      part: what is trained; see `alignment.split`.
      strength: of the preference; see `dpo_loss`.
      catalogue: the items' codes.
      choose: `(params, batch) -> (sessions [B, 2, K], where [B])`, the preferred and the rejected
        session of each request, as candidates. Not differentiated.
      index: `request_candidates` with the settings that `choose` uses; without bids.

    Returns:
      `loss(trained, pretrained, batch, key) -> (loss, (metrics, pretrained))`, where `trained` is
      the first part of `split` and `pretrained` all parameters before the alignment.
    """

    def log_prob(params: Params, batch, paths: Path) -> jax.Array:
        """Of both sessions `[B, 2]`."""
        history = batch["history_poi"], batch["history_creative"]
        memory = encode(params, config, *history, catalogue)
        own = lambda path: taken(path_log_probs(params, config, memory, path, 1.0, 1.0), path)
        return jax.vmap(own, in_axes=1, out_axes=1)(paths).sum((-2, -1))

    def loss(trained: Params, pretrained: Params, batch: dict[str, jax.Array], key: jax.Array):
        del key  # Nothing is sampled.
        _, frozen = split(pretrained, config, part)
        params = join(trained, frozen)
        sessions, where = choose(lax.stop_gradient(params), batch)
        candidates = jax.vmap(index)(
            codes_of(catalogue.poi_codes, batch["item"]),
            batch["is_ad"],
            batch["bid"],
            batch["item"] >= 0,
        )
        paths = jax.vmap(jax.vmap(slate_path, in_axes=(None, 0)))(candidates, sessions)
        ratio = log_prob(params, batch, paths) - log_prob(pretrained, batch, paths)
        weight = where.astype(jnp.float32)
        metrics = {
            "preferred": weighted_mean(ratio[:, 0], weight),
            "rejected": weighted_mean(ratio[:, 1], weight),
            "agreement": weighted_mean((ratio[:, 0] > ratio[:, 1]).astype(jnp.float32), weight),
        }
        return weighted_mean(dpo_loss(ratio, strength), weight), (metrics, pretrained)

    return loss


def pairs_of(models: Models, config: AllocationConfig, levers: Levers) -> Pairs:
    """`preference_loss`'s `choose`: from the current policy's own beams."""

    def choose(params: Params, batch: Mapping[str, jax.Array]):
        current = dataclasses.replace(models, generator=params)
        judge = lambda request: best_and_worst(current, config, levers, request)
        return jax.vmap(judge)(request_of(batch))

    return choose
