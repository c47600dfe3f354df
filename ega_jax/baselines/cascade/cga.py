"""CGA, the cascade's auction: it generates the list of ads one by one.

Contextual generative auction (Zhu et al., arXiv 2412.11544): a generator encodes the set of ads and
generates a list with a recurrent decoder, so that each choice depends on the ads before it. An
evaluator that knows the permutation values the lists, and policy gradients weight the lists by
their values. Here the evaluator is a function (in training, the reward model), and payments come
from the project's payment network. These choices are ours, not that paper's: the weight of a list,
the network's sizes, inputs that do not change if all bids are scaled, and initialisation to the
order of eCPM.

All functions take one request; `vmap` them over a batch.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from flax import struct
from jax import lax

from ega_jax.auction.alignment import policy_loss
from ega_jax.auction.system import pick_each, slate_value
from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.generation.network import NetworkSettings
from ega_jax.generation.transformer import Block, linear, row_wise_dot
from ega_jax.phases.logged import Batch, logged_phase
from ega_jax.phases.requests import real_rows
from ega_jax.training.loop import Phase
from ega_jax.training.settings import LoggedSettings
from ega_jax.types import IMPOSSIBLE, LossFn, Params

_LEAST = 1e-6  # Lower bound of quality and relative eCPM before the logarithm.
_GREED = 3.0  # Initial weight of log eCPM; a larger one keeps samples closer to the eCPM order.


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
    """The generator's config."""

    num_ads: int = dataclasses.field(kw_only=True)  # L, the most ads in a list.


@struct.dataclass
class Ads:
    """The auction's inputs for a request's candidates."""

    state: jax.Array  # [N, F] user-dependent state of the candidate, from the ranker.
    quality: jax.Array  # [N] float32 click probability, from the ranker.
    bid: jax.Array  # [N] float32, currency per click.
    where: jax.Array  # [N] bool, whether the candidate may be listed.


class ListJudge(Protocol):
    """The evaluator of the lists of a batch."""

    def __call__(self, lists: jax.Array, /) -> jax.Array:
        """Click probabilities of ads in lists, both `[B, R, L]`; 0 in empty slots."""
        ...


@struct.dataclass
class Reading:
    """A request's encoded ads, the decoder's input."""

    context: jax.Array  # [N, D] encoding of each ad in the context of the others.
    key: jax.Array  # [N, D] keys of the pointer; the decoder's state gives the query.
    prior: jax.Array  # [N] float32, weighted log eCPM.
    start: jax.Array  # [D] state of the decoder before the first ad.


class Generator(nn.Module):
    """A pointer network: encodes a set of ads and picks the next one from a recurrent state."""

    config: CGAConfig

    def setup(self):
        """Declares the encoder of ads, the recurrent cell and the pointer.

        Queries are initialised to zero, so that before training lists depend on eCPM only.
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
        """Encodes the ads of a request; their order does not matter."""
        money = money_features(ads)
        x = self.state_in(ads.state) + self.money_in(money)
        context = self.norm(self.block(x, ads.where))
        mean = jnp.where(ads.where[:, None], context, 0).sum(0) / jnp.maximum(ads.where.sum(), 1)
        start = self.extend(jnp.zeros_like(mean), mean.astype(context.dtype))
        prior = jax.nn.softplus(self.greed) * money[:, -1]
        return Reading(context, self.key(context), prior, start)

    def point(self, reading: Reading, state: jax.Array) -> jax.Array:
        """Returns logits `[N]` of the next ad from the decoder's state `[D]`."""
        match = reading.key @ self.query(state) * self.config.width**-0.5
        return match.astype(jnp.float32) + reading.prior

    def extend(self, state: jax.Array, context: jax.Array) -> jax.Array:
        """Returns the decoder's state `[D]` after an ad with a `context [D]`."""
        return self.cell(state, context)[0]


def money_features(ads: Ads) -> jax.Array:
    """Returns quality, bid and eCPM `[N, 3]` on log scales, independent of the currency's unit.

    Bids and eCPMs are divided by their means over the ads that may be listed, so scaling all bids
    by a common factor changes nothing.
    """

    def relative(x: jax.Array) -> jax.Array:
        mean = jnp.where(ads.where, x, 0.0).sum() / jnp.maximum(ads.where.sum(), 1)
        return x / jnp.where(mean > 0, mean, 1.0)

    log = lambda x: jnp.log(jnp.maximum(x, _LEAST))
    ecpm = relative(ads.quality * ads.bid)
    return jnp.stack([log(ads.quality), jnp.log1p(relative(ads.bid)), log(ecpm)], axis=-1)


def init(key: chex.PRNGKey, config: CGAConfig, state_width: int) -> Params:
    """Returns initial parameters for states of width `state_width`; pure, for `eval_shape`."""
    one = Ads(jnp.zeros((1, state_width)), jnp.ones(1), jnp.ones(1), jnp.ones(1, bool))

    def whole(model: Generator):
        reading = model.read(one)
        return model.point(reading, reading.start)

    return nn.init(whole, Generator(config))(key)["params"]


def generate(
    params: Params, config: CGAConfig, ads: Ads, key: chex.PRNGKey | None = None
) -> tuple[jax.Array, jax.Array]:
    """Generates a list without repeated ads.

    Args:
      params: the generator's parameters.
      config: the generator's config.
      ads: the ads of one request.
      key: random key to sample each ad; `None` takes the likeliest ad.

    Returns:
      Candidates `[L]` int32, -1 after the last, and their log-probabilities `[L]` float32 in nats,
      given the ads before them, 0 where empty.
    """
    if key is None:
        likeliest = lambda log_probs, _: jnp.argmax(log_probs)
        return _write(params, config, ads, likeliest, jnp.arange(config.num_ads))
    draw = lambda log_probs, key: jax.random.categorical(key, log_probs)
    return _write(params, config, ads, draw, jax.random.split(key, config.num_ads))


def list_log_probs(params: Params, config: CGAConfig, ads: Ads, listed: jax.Array) -> jax.Array:
    """Returns the log-probabilities `[L]` of the ads of a given list, teacher-forced.

    Args:
      params: the generator's parameters.
      config: the generator's config.
      ads: the ads of one request.
      listed: `[L]` int32 candidates, -1 after the last.

    Returns:
      Float32 in nats, given the ads before each, 0 where empty.
    """
    return _write(params, config, ads, lambda _, candidate: candidate, listed)[1]


def _write(
    params: Params, config: CGAConfig, ads: Ads, choose: Callable, given: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Generates a list by `choose(log_probs [N], given[l])` until no ad is left."""

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
        state = run("extend", state, reading.context[ad])  # After an empty slot all are empty.
        return (state, free & (place != ad)), (ad, log_prob)

    return lax.scan(step, (reading.start, ads.where), given)[1]


def cga_loss(
    config: CGAConfig,
    view: Callable[[Batch], tuple[Ads, ListJudge]],
    kappa: chex.Numeric = 0.0,
) -> LossFn:
    """Returns the policy-gradient loss of the generator, as `make_train_step` takes it.

    The weight of a sampled list is its value, the expected revenue at first price, minus that of
    the likeliest list. Weighting each ad by the list's loss without it, as EGA does (31), has a
    baseline that depends on the choice, and learned clearly less. Gradients flow through
    log-probabilities only.

    Args:
      config: the generator's config.
      view: `batch -> (ads, judge)`: the ads, with a leading axis `[B]`, and the evaluator of lists.
      kappa: the value of one expected click besides its price, in currency.

    Returns:
      `loss(params, variables, batch, key) -> (loss, (metrics, variables))`. Metrics are means over
      requests: `value` of the sampled and `greedy_value` of the likeliest lists in currency, and
      `list_log_prob` of the sampled lists in nats.
    """

    def propose(params: Params, ads: Ads, key: chex.PRNGKey) -> jax.Array:
        sampled, _ = generate(params, config, ads, key)
        return jnp.stack([sampled, generate(params, config, ads)[0]])

    def loss(params: Params, variables, batch: Batch, key: chex.PRNGKey):
        ads, judge = view(batch)
        keys = jax.random.split(key, len(ads.bid))
        lists = jax.vmap(propose, (None, 0, 0))(lax.stop_gradient(params), ads, keys)
        values = list_values(ads.bid, judge(lists), lists, kappa)
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


def standardise(r: jax.Array, where: jax.Array) -> jax.Array:
    """Scales the entries of `where` to mean 0 and variance 1; all 0 if they do not vary.

    Args:
      r: gains of any shape.
      where: bool, shaped as `r`.

    Returns:
      Float32, 0 outside `where`. A spread within rounding error counts as no variation.
    """
    count = jnp.maximum(where.sum(), 1)
    kept = jnp.where(where, r, 0.0)
    centred = jnp.where(where, r - kept.sum() / count, 0.0)
    deviation = jnp.sqrt(jnp.sum(centred**2) / count)
    varies = deviation > 1e-6 * jnp.abs(kept).max()
    return jnp.where(varies, centred / jnp.where(varies, deviation, 1.0), 0.0)


def list_values(
    bid: jax.Array, pctr: jax.Array, lists: jax.Array, kappa: chex.Numeric
) -> jax.Array:
    """Returns the values `[B, R]` of lists `[B, R, L]` at bids `[B, A]`; see `slate_value`."""
    return slate_value(pick_each(bid, lists, 0.0), pctr, kappa)


def cga_phase(
    dataset: AdLogDataset,
    config: CGAConfig,
    settings: LoggedSettings,
    seed: int,
    *,
    history_length: int,
    state_width: int,
    view: Callable[[Batch], tuple[Ads, ListJudge]],
    kappa: chex.Numeric = 0.0,
) -> Phase:
    """Returns the phase "cga": it trains on requests of "pretrain" and evaluates on "align".

    Args:
      dataset: an ad log.
      config: the generator's config.
      settings: the training settings; see `logged.logged_phase`.
      seed: seeds the parameters, the order of the sessions and the samples.
      history_length: T of the batches.
      state_width: F, the width of the ranker's states.
      view: see `cga_loss`.
      kappa: see `cga_loss`.
    """

    @jax.jit
    def greedy_values(params: Params, batch: Batch) -> jax.Array:
        ads, judge = view(batch)
        lists = jax.vmap(lambda ads: generate(params, config, ads)[0][None])(ads)
        return list_values(ads.bid, judge(lists), lists, kappa)

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
        loss=cga_loss(config, view, kappa),
        evaluate=evaluate,
    )
