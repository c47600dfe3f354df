"""Policy-gradient alignment by marginal contributions (paper sec. 4.4.2, eqs. 31-32).

What an item adds to the slate that won, judged by a fixed reward model, weighs the gradient of
its log allocation probability. The pre-trained backbone is frozen: the parameters are split in
two, the loss is differentiated by the trained ones alone, and so the gradient of the rest is
never computed. The KL divergence from the pre-trained policy is reported and may be penalised.
"""

import dataclasses
from collections.abc import Callable

import chex
import jax
import jax.numpy as jnp
from flax.traverse_util import flatten_dict, unflatten_dict
from jax import lax

from ega_jax.auction.settings import TokenWeights
from ega_jax.generation.candidates import RequestCandidates, request_candidates
from ega_jax.generation.generator import GeneratorConfig, codes_of, encode
from ega_jax.generation.slate_policy import Path, kl_to, path_log_probs, slate_path, taken
from ega_jax.setting import setting
from ega_jax.types import Catalogue, Metrics, Params

PARTS = ("head_and_last_block", "all")
Choose = Callable[[Params, dict[str, jax.Array]], tuple[jax.Array, jax.Array]]


@dataclasses.dataclass(frozen=True)
class AlignmentSettings:
    """What the loss reads of the group `alignment`."""

    kl_weight: float = setting(0.0, at_least=0)  # Of the KL from the pre-trained policy, per nat.
    part: str = setting("head_and_last_block", choices=PARTS)  # What is trained.


@dataclasses.dataclass(frozen=True)
class AlignmentConfig(AlignmentSettings, TokenWeights):
    """Settings of the alignment, and of the token weights (21) that its policy has."""


def marginal_contributions(
    values: jax.Array, items: jax.Array, where: jax.Array, chosen: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """What each item adds to the chosen slate (31): `value(S*) - value(best slate without it)`.

    The best slate without an item is looked for among the beams. Where all of them hold it, a
    second search without it has to tell.

    Args:
      values: `[S]` of the slates, in currency.
      items: `[S, K]` int32 candidates, -1 where a slot is empty.
      where: `[S]` bool, the beam holds a slate.
      chosen: `[]` int32 the slate that won.

    Returns:
      The contributions `[K]` float32 of the chosen slate's items, 0 where unknown or empty, and
      whether they are known, `[K]` bool.
    """
    chex.assert_rank([values, items, where], [1, 2, 1])
    item = items[chosen]
    lacks = where & ~jnp.any(items == item[:, None, None], axis=-1)  # [K, S]
    found = (item >= 0) & lacks.any(-1)
    without = jnp.max(jnp.where(lacks, values, -jnp.inf), axis=-1)
    return jnp.where(found, values[chosen] - jnp.where(found, without, 0.0), 0.0), found


def standardise(r: jax.Array, where: jax.Array) -> jax.Array:
    """Scales what is `where` to mean 0 and variance 1; all zeros where nothing varies.

    Args:
      r: contributions of any shape.
      where: bool, shaped as `r`.

    Returns:
      Float32, 0 outside `where`. Spread that rounding alone could cause counts as none.
    """
    count = jnp.maximum(where.sum(), 1)
    kept = jnp.where(where, r, 0.0)
    centred = jnp.where(where, r - kept.sum() / count, 0.0)
    deviation = jnp.sqrt(jnp.sum(centred**2) / count)
    varies = deviation > 1e-6 * jnp.abs(kept).max()
    return jnp.where(varies, centred / jnp.where(varies, deviation, 1.0), 0.0)


def policy_loss(log_z: jax.Array, contribution: jax.Array, where: jax.Array) -> jax.Array:
    """The policy-gradient loss of a slate (32): `-sum_i r_i * log z_i`.

    Args:
      log_z: `[..., K, C]` log allocation probabilities; an item's is the sum over its codes.
      contribution: `[..., K]` `r_i`, a constant to the gradient.
      where: `[..., K]` bool, the slot is filled.

    Returns:
      `[...]` float32.
    """
    gain = lax.stop_gradient(contribution) * log_z.sum(-1)
    return -jnp.where(where, gain, 0.0).sum(-1)


def split(params: Params, config: GeneratorConfig, part: str) -> tuple[Params, Params]:
    """Splits the generator's parameters into those that train and those that stay.

    Args:
      params: the generator's parameters.
      config: its sizes.
      part: one of `PARTS`; "head_and_last_block" are the POI output heads, with the norm before
        them, and the last block of the POI decoder.

    Returns:
      The trained and the frozen parameters, trees of disjoint leaves.

    Raises:
      ValueError: `part` is not one of `PARTS`.
    """
    if part not in PARTS:
        raise ValueError(f"part {part!r} is not one of {', '.join(PARTS)}")
    last_block = f"decoder_{config.decoder_blocks - 1}"
    heads = (("poi", "head"), ("poi", "norm"))
    trained, frozen = {}, {}
    for path, leaf in flatten_dict(params).items():
        is_trained = part == "all" or path[0] == last_block or path[:2] in heads
        (trained if is_trained else frozen)[path] = leaf
    return unflatten_dict(trained), unflatten_dict(frozen)


def join(trained: Params, frozen: Params) -> Params:
    """Puts together what `split` took apart."""
    return unflatten_dict({**flatten_dict(frozen), **flatten_dict(trained)})


def alignment_loss(
    config: GeneratorConfig,
    alignment: AlignmentConfig,
    catalogue: Catalogue,
    choose: Choose,
    index: Callable[..., RequestCandidates] = request_candidates,
) -> Callable:
    """The loss of policy-gradient alignment, in the form that the training loop takes.

    Args:
      config: sizes of the generator.
      alignment: settings.
      catalogue: the items' codes.
      choose: `(params, batch) -> (items [B, K], contribution [B, K])`, the slates that win under
        all of the generator's current parameters, as candidates, -1 where a slot is empty, and
        what each item adds to its slate (31), in currency. Not differentiated.
      index: `request_candidates` with the settings that `choose` uses.

    Returns:
      `loss(trained, pretrained, batch, key) -> (loss, (metrics, pretrained))`, where `trained` is
      the first part of `split` and `pretrained` all parameters before the alignment. `batch`
      holds the fields of `Request`. The loss is the mean over requests of (32), with
      contributions standardised over the batch, plus the weighted KL.
    """

    def path_of(item, is_ad, bid, items):
        codes = codes_of(catalogue.poi_codes, item)
        return slate_path(index(codes, is_ad, bid, item >= 0), items)

    def log_probs(params: Params, batch: dict[str, jax.Array], path: Path) -> jax.Array:
        history = batch["history_poi"], batch["history_creative"]
        memory = encode(params, config, *history, catalogue)
        return path_log_probs(params, config, memory, path, alignment.alpha, alignment.beta)

    def loss(trained: Params, pretrained: Params, batch: dict[str, jax.Array], key):
        del key  # Nothing is sampled.
        _, frozen = split(pretrained, config, alignment.part)
        params = join(trained, frozen)
        items, contribution = choose(lax.stop_gradient(params), batch)
        path = jax.vmap(path_of)(batch["item"], batch["is_ad"], batch["bid"], items)
        policy, reference = (log_probs(p, batch, path) for p in (params, pretrained))
        metrics = _metrics(policy, reference, path, contribution)
        total = metrics["policy_loss"] + alignment.kl_weight * metrics["kl"]
        return total, (metrics, pretrained)

    return loss


def _metrics(policy, reference, path: Path, contribution: jax.Array) -> Metrics:
    """Means over requests of the loss's two terms, and of what they are made of."""
    log_z = taken(policy, path)
    where = path.where
    weights = standardise(contribution, where)
    return {
        "policy_loss": policy_loss(log_z, weights, where).mean(),
        "kl": kl_to(reference, policy, path.options.where).mean(),
        "slate_log_prob": log_z.sum((-2, -1)).mean(),
        "contribution": jnp.where(where, contribution, 0.0).sum(-1).mean(),
    }
