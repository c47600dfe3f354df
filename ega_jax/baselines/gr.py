"""The baseline GR: OneRec, preference-aligned generation of sessions (arXiv 2502.18965).

An encoder-decoder generates a session code by code. It shares the pre-training (27) of the
project's generator. Then the reward model values beams of the current model by clicks times bids,
and direct preference optimisation moves the model from the worst beam towards the best one. The
search ignores bids. GR adds Peri-CR's creatives and prices by GSP; as in EGA, it shows the session
of the highest expected revenue among those found.

Unlike OneRec's, the decoder has no mixture of experts; the widths compared here are too small.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import struct
from jax import lax

from ega_jax.auction.ega import EGA
from ega_jax.auction.system import Levers, PreparedRequest
from ega_jax.baselines.cascade import peri_cr
from ega_jax.baselines.cascade.peri_cr import PeriCRConfig
from ega_jax.baselines.cascade.stages import Stages
from ega_jax.baselines.settings import check_stages, whole
from ega_jax.errors import UserError
from ega_jax.generation.decoder import Decoder
from ega_jax.generation.pretraining import weighted_mean
from ega_jax.generation.slate_policy import Path, path_log_probs, taken
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.ega import align, ega_with
from ega_jax.phases.requests import request_of
from ega_jax.phases.settings import PhaseSettings
from ega_jax.types import AnyRequest, LossFn, Params


@struct.dataclass
class GR(EGA):
    """OneRec with Peri-CR's creatives: EGA with a search that ignores bids, and other creatives."""

    peri_cr: Params
    peri_cr_config: PeriCRConfig = struct.field(pytree_node=False)

    weighs_tokens: ClassVar[bool] = False
    judged_truthful: ClassVar[bool] = False

    def creatives_of(self, prepared: PreparedRequest, item: jax.Array) -> jax.Array:
        """The creative `[X, 1]` that Peri-CR chooses for each POI `[X]`."""
        memory, model = prepared.memory, (self.peri_cr, self.peri_cr_config, self.items)
        history = memory.history_poi, memory.history_creative
        return peri_cr.choose(*model, *history, item, memory.context)[:, None]


def dpo_loss(log_ratio: jax.Array, strength: float) -> jax.Array:
    """Computes the DPO loss (Rafailov et al., arXiv 2305.18290, eq. 7).

    Args:
      log_ratio: `[..., 2]` log-probability of the preferred and of the rejected session, minus that
        under the reference policy.
      strength: that paper's beta, the weight of the implicit KL penalty: a larger value keeps the
        optimal policy closer to the reference.

    Returns:
      `[...]` float32, `-log sigmoid(strength * difference)`.
    """
    return -jax.nn.log_sigmoid(strength * (log_ratio[..., 0] - log_ratio[..., 1]))


def best_and_worst(system: EGA, prepared: PreparedRequest) -> tuple[jax.Array, jax.Array]:
    """Returns the sessions of highest and lowest expected revenue in one request's menu.

    Args:
      system: searches for the sessions.
      prepared: one request, prepared for a bid-free search.

    Returns:
      Candidates `[2, K]`, -1 where a slot is empty, and whether their values differ, `[]` bool.
    """
    menu = system.find_menu(prepared)
    best = jnp.argmax(menu.value)
    worst = jnp.argmin(jnp.where(menu.where, menu.value, jnp.inf))
    pair = jnp.stack([menu.candidate[best], menu.candidate[worst]])
    return pair, menu.value[best] > menu.value[worst]


def preference_loss(system: EGA, strength: float, levers: Levers) -> LossFn:
    """Returns the loss of the preference alignment, as `make_train_step` takes it.

    Args:
      system: searches for the sessions, with the decoder's parameters of the current step.
      strength: see `dpo_loss`.
      levers: run-time settings, bid-free.

    Returns:
      `loss(trained, pretrained, batch, key) -> (loss, (metrics, pretrained))`, where `trained` is
      `Decoder.trainable` and `pretrained` holds all pre-trained parameters.
    """
    catalogue = system.items.catalogue

    def log_prob(decoder: Decoder, batch, paths: Path) -> jax.Array:
        """Returns the log-probabilities `[B, 2]` of both sessions."""
        history = batch["history_poi"], batch["history_creative"]
        memory = decoder.encode(*history, catalogue, batch.get("context"))
        own = lambda path: taken(path_log_probs(decoder, memory, path, 1.0, 1.0), path)
        return jax.vmap(own, in_axes=1, out_axes=1)(paths).sum((-2, -1))

    def sessions_of(decoder: Decoder, batch) -> tuple[Path, jax.Array]:
        """Returns the paths `[B, 2]` of both sessions, and whether they differ `[B]`."""
        current = dataclasses.replace(system, decoder=lax.stop_gradient(decoder))

        def one(request: AnyRequest) -> tuple[Path, jax.Array]:
            prepared = current.prepare(request, levers)
            pair, differ = best_and_worst(current, prepared)
            return jax.vmap(lambda session: current.path(prepared, session))(pair), differ

        return jax.vmap(one)(request_of(batch))

    def loss(trained: Params, pretrained: Params, batch: dict[str, jax.Array], key: jax.Array):
        del key  # Nothing is sampled.
        reference = system.decoder.with_parameters(pretrained)
        policy = reference.with_parameters(trained)
        paths, where = sessions_of(policy, batch)
        ratio = log_prob(policy, batch, paths) - log_prob(reference, batch, paths)
        weight = where.astype(jnp.float32)
        metrics = {
            "preferred": weighted_mean(ratio[:, 0], weight),
            "rejected": weighted_mean(ratio[:, 1], weight),
            "agreement": weighted_mean((ratio[:, 0] > ratio[:, 1]).astype(jnp.float32), weight),
        }
        return weighted_mean(dpo_loss(ratio, strength), weight), (metrics, pretrained)

    return loss


def train_gr(run: AuctionTraining) -> GR:
    """Trains OneRec with Peri-CR's creatives, aligned by direct preference optimisation."""
    ega, stages = ega_with(run, run.pretraining.restore_generator()), Stages(run)
    system = GR(**vars(ega), peri_cr=stages.peri_cr, peri_cr_config=stages.peri_cr_config)
    strength = whole(run.settings).one_rec.strength
    return align(run, system, preference_loss(system, strength, run.levers))


def check_gr(settings: PhaseSettings) -> None:
    """Refuses a search with bids and training in one stage.

    Raises:
      UserError: `allocation.bid_free` is False, or `alignment.one_stage` is True.
    """
    check_stages(settings)
    if not settings.allocation.bid_free:
        raise UserError(
            "config.allocation.bid_free: GR generates without bids (auction.system=gr): set it True"
        )
