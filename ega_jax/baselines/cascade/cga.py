"""CGA as the cascade's auction: the list of ads, written one after another.

Contextual generative auction (Zhu et al., arXiv 2412.11544): a generator reads the set of ads and
writes a list with a recurrent decoder, so that an ad is chosen in view of those before it; an
evaluator that knows the permutation judges lists; and policy gradients weigh lists by what they are
worth. The evaluator is a function here, the reward model in practice, and payments come from the
project's payment network. The weight of a list, the network's sizes, its inputs on a scale that no
common factor of the bids can move, and its start from the order of eCPM are our own reading.

Written for one request; `vmap` it over a batch.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax

from ega_jax.auction.alignment import policy_loss, standardise
from ega_jax.auction.system import pick_each, slate_value
from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.generation.network import NetworkSettings
from ega_jax.generation.transformer import Block, linear, row_wise_dot
from ega_jax.phases.auction import real_rows
from ega_jax.phases.logged import Batch, logged_phase
from ega_jax.training.loop import Phase
from ega_jax.training.settings import LoggedSettings
from ega_jax.types import IMPOSSIBLE, LossFn, Params

_LEAST = 1e-6  # Quality, and eCPM relative to the request's mean; their logarithms stay finite.
_GREED = 3.0  # Weight of log eCPM at the start: how close samples keep to the order of eCPM.

Judge = Callable[[Batch, jax.Array], jax.Array]


@dataclasses.dataclass(frozen=True)
class JudgedSettings(LoggedSettings):
    """A stage of the cascade that is trained against the reward model."""

    batch_size: int = 64
    num_steps: int = 500
    learning_rate: float = 1e-3
    weight_decay: float = 0.0


@dataclasses.dataclass(frozen=True)
class CGAPhaseSettings(NetworkSettings, JudgedSettings):
    """The group `cascade.cga`: the generator of lists and its training."""


@dataclasses.dataclass(frozen=True)
class CGAConfig(NetworkSettings):
    """Sizes of the generator."""

    num_ads: int = dataclasses.field(kw_only=True)  # L, the most ads in a list.


@struct.dataclass
class Ads:
    """What the auction sees of a request's candidates."""

    state: jax.Array  # [N, F] the candidate in the user's eyes, from the ranker.
    quality: jax.Array  # [N] float32 click probability, from the ranker.
    bid: jax.Array  # [N] float32, currency per click.
    where: jax.Array  # [N] bool, may be listed.


@struct.dataclass
class Reading:
    """A request's ads as the decoder sees them."""

    context: jax.Array  # [N, D] each ad among the others.
    key: jax.Array  # [N, D] what the decoder's query is compared with.
    prior: jax.Array  # [N] float32, weighted log eCPM.
    start: jax.Array  # [D] state of the decoder before the first ad.


class Generator(nn.Module):
    """Reads a set of ads, and points at the next one from a recurrent state."""

    config: CGAConfig

    def setup(self):
        """Declares the encoder of ads, the recurrent cell and the pointer.

        Queries start at zero, so that the first lists follow eCPM alone.
        """
        c = self.config
        self.state_in, self.money_in, self.key = (linear(c.width, c.dtype) for _ in range(3))
        self.block = Block(c.width, c.num_heads, c.hidden, c.dtype)
        self.norm = nn.RMSNorm(dtype=c.dtype)
        self.cell = nn.GRUCell(c.width, dtype=c.dtype)
        self.query = nn.Dense(
            c.width,
            use_bias=False,
            dtype=c.dtype,
            kernel_init=nn.initializers.zeros,
            dot_general=row_wise_dot,
        )
        self.greed = self.param("greed", nn.initializers.constant(np.log(np.expm1(_GREED))), ())

    def read(self, ads: Ads) -> Reading:
        """Encodes the ads of a request, whatever order they come in."""
        money = money_features(ads)
        x = self.state_in(ads.state) + self.money_in(money)
        context = self.norm(self.block(x, self.block.self_keys_values(x), ads.where))
        mean = jnp.where(ads.where[:, None], context, 0).sum(0) / jnp.maximum(ads.where.sum(), 1)
        start = self.extend(jnp.zeros_like(mean), mean.astype(context.dtype))
        prior = jax.nn.softplus(self.greed) * money[:, -1]
        return Reading(context, self.key(context), prior, start)

    def point(self, reading: Reading, state: jax.Array) -> jax.Array:
        """Logits `[N]` of the next ad from the decoder's state `[D]`."""
        match = reading.key @ self.query(state) * self.config.width**-0.5
        return match.astype(jnp.float32) + reading.prior

    def extend(self, state: jax.Array, context: jax.Array) -> jax.Array:
        """The decoder's state `[D]` after an ad with a `context [D]`."""
        return self.cell(state, context)[0]


def money_features(ads: Ads) -> jax.Array:
    """Quality, bid and eCPM `[N, 3]` on log scales, each free of the currency's unit.

    Bids and eCPMs count relative to their mean over the ads that may be listed, so a common factor
    of all bids changes nothing.
    """

    def relative(x: jax.Array) -> jax.Array:
        mean = jnp.where(ads.where, x, 0.0).sum() / jnp.maximum(ads.where.sum(), 1)
        return x / jnp.where(mean > 0, mean, 1.0)

    log = lambda x: jnp.log(jnp.maximum(x, _LEAST))
    ecpm = relative(ads.quality * ads.bid)
    return jnp.stack([log(ads.quality), jnp.log1p(relative(ads.bid)), log(ecpm)], axis=-1)


def init(key: chex.PRNGKey, config: CGAConfig, state_width: int) -> Params:
    """Fresh parameters for candidates with states of a width; pure, for `eval_shape`."""
    one = Ads(jnp.zeros((1, state_width)), jnp.ones(1), jnp.ones(1), jnp.ones(1, bool))

    def whole(model: Generator):
        reading = model.read(one)
        return model.point(reading, reading.start)

    return nn.init(whole, Generator(config))(key)["params"]


def generate(
    params: Params, config: CGAConfig, ads: Ads, key: chex.PRNGKey | None = None
) -> tuple[jax.Array, jax.Array]:
    """Writes a list, no ad twice.

    Args:
      params: of the generator.
      config: its sizes.
      ads: of one request.
      key: draws every ad from its distribution; None takes the likeliest.

    Returns:
      Candidates `[L]` int32, -1 after the last, and their log-probabilities `[L]` float32 in nats
      given the ads before them, 0 where empty.
    """
    if key is None:
        likeliest = lambda log_probs, _: jnp.argmax(log_probs)
        return _write(params, config, ads, likeliest, jnp.arange(config.num_ads))
    draw = lambda log_probs, key: jax.random.categorical(key, log_probs)
    return _write(params, config, ads, draw, jax.random.split(key, config.num_ads))


def list_log_probs(params: Params, config: CGAConfig, ads: Ads, listed: jax.Array) -> jax.Array:
    """Log-probabilities `[L]` of the ads of a list that `generate` could write, teacher-forced.

    Args:
      params: of the generator.
      config: its sizes.
      ads: of one request.
      listed: `[L]` int32 candidates, -1 after the last.

    Returns:
      Float32 in nats, given the ads before each, 0 where empty.
    """
    return _write(params, config, ads, lambda _, candidate: candidate, listed)[1]


def _write(
    params: Params, config: CGAConfig, ads: Ads, choose: Callable, given: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Lists what `choose(log_probs [N], given[l])` says, until no ad is left."""

    def run(method: str, *inputs) -> Any:
        return Generator(config).apply({"params": params}, *inputs, method=method)

    reading = run("read", ads)
    place = jnp.arange(ads.where.shape[0])

    def step(carry, given):
        state, free = carry
        logits = jnp.where(free, run("point", reading, state), IMPOSSIBLE)
        log_probs = jax.nn.log_softmax(logits)
        ad = jnp.where(free.any(), choose(log_probs, given), -1).astype(jnp.int32)
        log_prob = jnp.where(ad >= 0, log_probs[ad], 0.0)
        state = run("extend", state, reading.context[ad])  # After an empty place all are empty.
        return (state, free & (place != ad)), (ad, log_prob)

    return lax.scan(step, (reading.start, ads.where), given)[1]


def cga_loss(
    config: CGAConfig,
    view: Callable[[Batch], Ads],
    judge: Judge,
    kappa: chex.Numeric = 0.0,
) -> LossFn:
    """The policy-gradient loss of the generator, in the form that the training loop takes.

    A sampled list weighs by its value, the expected revenue at first price, less that of the
    likeliest list. Weighing each of its ads by what the list would lose without it, as EGA does
    (31), subtracts what depends on the choice, and learnt clearly less. Only log-probabilities are
    differentiated.

    Args:
      config: sizes of the generator.
      view: `batch -> ads`, with a leading axis `[B]`.
      judge: `(batch, lists [B, R, L]) -> pctr [B, R, L]`, click probabilities of candidates in
        their list, by the evaluator; 0 in empty places.
      kappa: currency that one expected click is worth beside its price.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`. Metrics are means over
      requests: the `value` of sampled and the `greedy_value` of likeliest lists in currency, and
      the sampled lists' `list_log_prob` in nats.
    """

    def propose(params: Params, ads: Ads, key: chex.PRNGKey) -> jax.Array:
        sampled, _ = generate(params, config, ads, key)
        return jnp.stack([sampled, generate(params, config, ads)[0]])

    def loss(params: Params, variables, batch: Batch, key: chex.PRNGKey):
        ads = view(batch)
        keys = jax.random.split(key, len(ads.bid))
        lists = jax.vmap(propose, (None, 0, 0))(lax.stop_gradient(params), ads, keys)
        values = list_values(ads.bid, judge(batch, lists), lists, kappa)
        sampled, (value, greedy) = lists[:, 0], values.T
        gain = jnp.broadcast_to((value - greedy)[:, None], sampled.shape)
        gain = standardise(gain, sampled >= 0)
        forced = lambda ads, listed: list_log_probs(params, config, ads, listed)
        log_probs = jax.vmap(forced)(ads, sampled)
        metrics = {
            "value": value.mean(),
            "greedy_value": greedy.mean(),
            "list_log_prob": log_probs.sum(-1).mean(),
        }
        total = policy_loss(log_probs[..., None], gain, sampled >= 0).mean()
        return total, (metrics, variables)

    return loss


def list_values(
    bid: jax.Array, pctr: jax.Array, lists: jax.Array, kappa: chex.Numeric
) -> jax.Array:
    """What lists `[B, R, L]` are worth at the bids `[B, A]`: `[B, R]`, see `slate_value`."""
    return slate_value(pick_each(bid, lists, 0.0), pctr, kappa)


def cga_phase(
    dataset: AdLogDataset,
    config: CGAConfig,
    settings: LoggedSettings,
    seed: int,
    *,
    history_length: int,
    state_width: int,
    view: Callable[[Batch], Ads],
    judge: Judge,
    kappa: chex.Numeric = 0.0,
) -> Phase:
    """The phase "cga": trained on requests of "pretrain", measured on "align".

    Args:
      dataset: an ad log.
      config: sizes of the generator.
      settings: of the training; see `logged.logged_phase`.
      seed: of parameters, order of the sessions and samples.
      history_length: T of the batches.
      state_width: F, of the ranker's states.
      view: see `cga_loss`.
      judge: likewise.
      kappa: likewise.
    """

    @jax.jit
    def greedy_values(params: Params, batch: Batch) -> jax.Array:
        ads = view(batch)
        lists = jax.vmap(lambda ads: generate(params, config, ads)[0][None])(ads)
        return list_values(ads.bid, judge(batch, lists), lists, kappa)

    def evaluate(params: Params, batches: Iterable[Batch]) -> dict[str, float]:
        values = [
            np.asarray(greedy_values(params, batch))[real_rows(batch), 0] for batch in batches
        ]
        return {"greedy_value": float(np.concatenate(values).mean())}

    return logged_phase(
        "cga",
        dataset,
        settings,
        seed,
        history_length=history_length,
        init=lambda key: init(key, config, state_width),
        loss=cga_loss(config, view, judge, kappa),
        evaluate=evaluate,
    )
