"""CrossDQN, the cascade's allocation: it places a list of ads among the organic items.

Cross deep Q-network (Liao et al., arXiv 2109.04353): a slate is filled screen by screen. An action
is an arrangement, the set of a screen's slots that hold ads. Its value is computed from the items
that it would show together with those already placed (the state crossed with the action). Both
queues keep their order. These choices are ours, not that paper's: self-attention over the slate
does the crossing, rewards of rolled-out slates come from a reward model instead of a log, and
limits on ads hold by construction, so the paper's loss on the share of ads is not needed.

All functions take one request; `vmap` them over a batch.
"""

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any, Protocol

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from flax import struct
from jax import lax

from ega_jax.baselines.cascade.arrangements import (
    NO_LIMIT,
    Queues,
    at,
    candidates_of_screen,
    ecpm_scale,
    queued,
    taken,
)
from ega_jax.baselines.cascade.cga import Ads, JudgedSettings, money_features
from ega_jax.data.ad_logs import AdLogDataset
from ega_jax.errors import UserError
from ega_jax.generation.network import NetworkSettings
from ega_jax.generation.pretraining import weighted_mean
from ega_jax.generation.transformer import Block, embedding, linear, row_wise_dot
from ega_jax.phases.logged import Batch, logged_phase
from ega_jax.setting import setting
from ega_jax.training.loop import Phase
from ega_jax.types import IMPOSSIBLE, LossFn, Params


@dataclasses.dataclass(frozen=True)
class CrossDQNSettings(NetworkSettings):
    """The part of the group `cascade.cross_dqn` that the network reads."""

    screen: int = setting(5, at_least=1)  # Slots per screen; must divide K.
    # Discount of the next screen's value; at 1 all screens count equally.
    discount: float = setting(1.0, at_least=0, at_most=1)


@dataclasses.dataclass(frozen=True)
class CrossDQNPhaseSettings(CrossDQNSettings, JudgedSettings):
    """The group `cascade.cross_dqn`: the network and its training."""

    epsilon: float = setting(0.3, at_least=0, at_most=1)  # Share of random actions.
    tau: float = setting(0.01, above=0, at_most=1)  # Update rate of the target network per step.


@dataclasses.dataclass(frozen=True)
class CrossDQNConfig(CrossDQNSettings):
    """The network's config; there are `A = 2 ** screen` actions."""

    num_slots: int = dataclasses.field(kw_only=True)  # K

    def __post_init__(self):
        """Checks that the screen size divides the number of slots."""
        if self.num_slots % self.screen:
            raise UserError(f"screens of {self.screen} slots do not fill {self.num_slots}")

    @property
    def num_screens(self) -> int:
        """The number of screens, i.e. decisions, per slate."""
        return self.num_slots // self.screen


class SlateJudge(Protocol):
    """The rewards of the slates of a batch."""

    def __call__(self, slates: jax.Array, /) -> jax.Array:
        """Expected currency of each slot of complete slates, both `[B, K]`.

        Values of empty slots are ignored.
        """
        ...


@struct.dataclass
class Rollout:
    """The states of a slate, screen by screen."""

    chosen: jax.Array  # [K / screen, K] int32 the slate after each screen, -1 where empty.
    preferred: jax.Array  # [K / screen, K] int32 the slate after the screen's best arrangement.


class CrossNetwork(nn.Module):
    """The Q-network: values of slates as they would be after a screen."""

    config: CrossDQNConfig

    def setup(self):
        """Declares embeddings, the crossing block, and the heads of this and of later screens."""
        c = self.config
        head = lambda: nn.Sequential(
            [
                linear(c.hidden, c.dtype),
                nn.relu,
                nn.Dense(1, dtype=c.dtype, dot_general=row_wise_dot),
            ]
        )
        self.state_in, self.money_in = (linear(c.width, c.dtype) for _ in range(2))
        self.slot = embedding(c.num_slots, c.width, c.dtype)
        self.block = Block(c.width, c.num_heads, c.hidden, c.dtype)
        self.norm = nn.RMSNorm(dtype=c.dtype)
        self.now, self.later = head(), head()

    def __call__(self, queues: Queues, slates: jax.Array, screen: jax.Array) -> jax.Array:
        """Returns values `[A]` of slates `[A, K]`; see `q_values`."""
        c = self.config
        shown, slot = slates >= 0, jnp.arange(c.num_slots)
        items = self._items(queues)
        x = items[slates] + self.slot(slot)
        seen = shown[:, None, None, :]
        h = self.norm(self.block(x, seen))
        count = jnp.maximum(shown.sum(-1, keepdims=True), 1).astype(h.dtype)
        mean = jnp.where(shown[..., None], h, 0).sum(-2) / count
        around = jnp.broadcast_to(mean[:, None], h.shape)
        reward = self.now(jnp.concatenate([h, around], axis=-1))[..., 0]
        rest = [mean, *self._ahead(queues, items, slates)]
        future = self.later(jnp.concatenate(rest, axis=-1))[..., 0]
        here = shown & (slot // c.screen == screen[:, None])
        goes_on = here.any(-1) & (screen < c.num_screens - 1)
        total = jnp.where(here, reward, 0).sum(-1) + jnp.where(goes_on, future, 0)
        return total.astype(jnp.float32)

    def _items(self, queues: Queues) -> jax.Array:
        """Embeds candidates, `[N, D]`, independent of the slot; with CGA's bid features."""
        known = Ads(queues.state, queues.quality, queues.bid, queued(queues))
        quality, bid, ecpm = jnp.moveaxis(money_features(known), -1, 0)
        is_ad = queues.is_ad.astype(quality.dtype)
        money = jnp.stack([quality, bid * is_ad, ecpm * is_ad, is_ad], axis=-1)
        return self.state_in(queues.state) + self.money_in(money)

    def _ahead(self, queues: Queues, items: jax.Array, slates: jax.Array) -> list[jax.Array]:
        """Averages each queue's next screen of items, `[A, D]` each; a missing item is 0."""
        place, ahead = jnp.arange(self.config.screen), []
        both = zip((queues.ads, queues.organic), taken(queues, slates), strict=True)
        for queue, number in both:
            following = at(queue, number[:, None] + place)
            ahead.append(jnp.where(following[..., None] >= 0, items[following], 0).mean(-2))
        return ahead


def init(key: chex.PRNGKey, config: CrossDQNConfig, state_width: int) -> Params:
    """Returns initial parameters for states of width `state_width`; pure, for `eval_shape`."""
    one, queue = jnp.zeros(1), jnp.zeros(1, jnp.int32)
    queues = Queues(jnp.zeros((1, state_width)), one, one, one > 0, queue, queue)
    slates = jnp.zeros((1, config.num_slots), jnp.int32)
    return CrossNetwork(config).init(key, queues, slates, queue)["params"]


def q_values(
    params: Params, config: CrossDQNConfig, queues: Queues, slates: jax.Array, screen: jax.Array
) -> jax.Array:
    """Returns the expected reward of a screen and all later ones, given the slate after the screen.

    The value is the sum of the rewards of the screen's items, each in the context of its slate,
    plus a term for the future rewards of the next items of the queues. It is 0 for a screen that
    shows nothing.

    Args:
      params: the network's parameters.
      config: the network's config.
      queues: the queues to merge.
      slates: `[A, K]` int32 candidates up to the screen, -1 where empty.
      screen: `[]` or `[A]` int32 number of the screen, from 0.

    Returns:
      `[A]` float32, in multiples of `ecpm_scale`.
    """
    screen = jnp.broadcast_to(screen, slates.shape[:1])
    values: Any = CrossNetwork(config).apply({"params": params}, queues, slates, screen)
    return values


def rollout(
    params: Params,
    config: CrossDQNConfig,
    queues: Queues,
    max_ads: chex.Numeric = NO_LIMIT,
    min_gap: chex.Numeric = 0,
    explore_key: chex.PRNGKey | None = None,
    epsilon: chex.Numeric = 0.0,
) -> Rollout:
    """Merges the queues: each screen takes the admissible arrangement of the highest value.

    Args:
      params: the network's parameters.
      config: the network's config.
      queues: the queues to merge.
      max_ads: most ads in the slate.
      min_gap: fewest organic items between two ads.
      explore_key: random key of the exploration; `None` always takes the best arrangement.
      epsilon: with a key, the probability that a screen's arrangement is drawn uniformly from the
        admissible ones.

    Returns:
      The slates after each screen.
    """

    def step(slate, now):
        screen, key = now
        slates, where = candidates_of_screen(config.screen, queues, slate, screen, max_ads, min_gap)
        values = q_values(params, config, queues, slates, screen)
        best = jnp.argmax(jnp.where(where, values, IMPOSSIBLE))
        action = best if key is None else _explore(key, best, where, epsilon)
        return slates[action], Rollout(slates[action], slates[best])

    keys = None if explore_key is None else jax.random.split(explore_key, config.num_screens)
    empty = jnp.full(config.num_slots, -1, jnp.int32)
    return lax.scan(step, empty, (jnp.arange(config.num_screens), keys))[1]


def _explore(key: chex.PRNGKey, best: jax.Array, where: jax.Array, epsilon) -> jax.Array:
    """Returns the best action, or with probability `epsilon` a random one of `where [A]`."""
    key_whether, key_which = jax.random.split(key)
    other = jax.random.categorical(key_which, jnp.where(where, 0.0, IMPOSSIBLE))
    return jnp.where(jax.random.bernoulli(key_whether, epsilon), other, best)


def place(
    params: Params,
    config: CrossDQNConfig,
    queues: Queues,
    max_ads: chex.Numeric = NO_LIMIT,
    min_gap: chex.Numeric = 0,
) -> jax.Array:
    """Returns the final slate of `rollout`: candidates `[K]` int32, -1 after the last."""
    return rollout(params, config, queues, max_ads, min_gap).chosen[-1]


def td_target(
    reward: jax.Array, next_q: jax.Array, is_last: jax.Array, discount: chex.Numeric
) -> jax.Array:
    """Returns the double Q-learning target `r + discount * Q'(s', argmax_a Q(s', a))`, no gradient.

    Args:
      reward: `[...]` reward of the screen.
      next_q: `[...]` target network's value of the arrangement that the online network prefers at
        the next screen; unused at the last screen.
      is_last: `[...]` bool, whether the screen is the last one.
      discount: discount of the next screen's value.

    Returns:
      `[...]` float32.
    """
    return lax.stop_gradient(reward + discount * jnp.where(is_last, 0.0, next_q))


def cross_dqn_loss(
    config: CrossDQNConfig,
    view: Callable[[Batch], tuple[Queues, SlateJudge]],
    epsilon: float,
    tau: float,
    max_ads: int = NO_LIMIT,
    min_gap: int = 0,
) -> LossFn:
    """Returns the temporal-difference loss of the network, as `make_train_step` takes it.

    Slates are rolled out with the current parameters, and rewards are computed for complete
    slates. The reward of a screen is the sum over its slots, in multiples of `ecpm_scale`.

    Args:
      config: the network's config.
      view: `batch -> (queues, judge)`: the queues, with a leading axis `[B]`, and the rewards.
      epsilon: the probability of exploration; see `rollout`.
      tau: per step, the target network moves by this share towards the current parameters.
      max_ads: see `rollout`.
      min_gap: see `rollout`.

    Returns:
      `loss(params, target_params, batch, key) -> (loss, (metrics, target_params))`: the Huber loss
      of the values of the chosen arrangements, averaged over the screens that show an item. The
      metrics are the loss, `td_loss`, and the mean `reward` of a rolled-out slate in currency.
    """
    screens = jnp.arange(config.num_screens)

    def explore(params: Params, queues: Queues, key: chex.PRNGKey) -> Rollout:
        return rollout(params, config, queues, max_ads, min_gap, key, epsilon)

    def values(params: Params, queues: Queues, slates: jax.Array, screen: jax.Array) -> jax.Array:
        each = lambda queues, slates: q_values(params, config, queues, slates, screen)
        return jax.vmap(each)(queues, slates)

    def loss(params: Params, target_params: Params, batch: Batch, key: chex.PRNGKey):
        (queues, judge), online = view(batch), lax.stop_gradient(params)
        keys = jax.random.split(key, len(queues.bid))
        paths = jax.vmap(explore, (None, 0, 0))(online, queues, keys)
        slates = paths.chosen[:, -1]
        earned = jnp.where(slates >= 0, judge(slates), 0.0)
        by_screen = lambda x: x.reshape(-1, config.num_screens, config.screen)
        reward = by_screen(earned / jax.vmap(ecpm_scale)(queues)[:, None]).sum(-1)
        following = jnp.roll(paths.preferred, -1, axis=1), jnp.roll(screens, -1)
        next_q = values(target_params, queues, *following)
        is_last = screens == config.num_screens - 1
        target = td_target(reward, next_q, is_last, config.discount)
        error = optax.huber_loss(values(params, queues, paths.chosen, screens), target)
        td_loss = weighted_mean(error, by_screen(slates >= 0).any(-1).astype(error.dtype))
        metrics = {"td_loss": td_loss, "reward": earned.sum(-1).mean()}
        return td_loss, (metrics, optax.incremental_update(online, target_params, tau))

    return loss


def cross_dqn_phase(
    dataset: AdLogDataset,
    config: CrossDQNConfig,
    settings: CrossDQNPhaseSettings,
    seed: int,
    *,
    history_length: int,
    state_width: int,
    view: Callable[[Batch], tuple[Queues, SlateJudge]],
    max_ads: int = NO_LIMIT,
    min_gap: int = 0,
) -> Phase:
    """Returns the phase "cross_dqn": it trains on requests of "pretrain", evaluates on "align".

    Args:
      dataset: an ad log.
      config: the network's config.
      settings: the training settings, with `epsilon` and `tau`; see `logged.logged_phase`.
      seed: seeds the parameters, the order of the sessions and the exploration.
      history_length: T of the batches.
      state_width: F, the width of the ranker's states.
      view: see `cross_dqn_loss`.
      max_ads: see `rollout`.
      min_gap: see `rollout`.
    """

    @jax.jit
    def rewards(params: Params, batch: Batch) -> tuple[jax.Array, jax.Array]:
        merge = lambda queues: place(params, config, queues, max_ads, min_gap)
        queues, judge = view(batch)
        slates = jax.vmap(merge)(queues)
        shown = slates >= 0
        return jnp.where(shown, judge(slates), 0.0).sum(), shown.any(-1).sum()

    def evaluate(params: Params, batches: Iterable[Batch]) -> dict[str, float]:
        totals = np.array([jax.device_get(rewards(params, batch)) for batch in batches])
        reward, requests = totals.sum(0)  # The last batch may be padded with blank rows.
        return {"reward": float(reward / requests)}

    limits = settings.epsilon, settings.tau, max_ads, min_gap
    phase = logged_phase(
        "cross_dqn",
        dataset,
        settings,
        seed,
        history_length=history_length,
        init=lambda key: init(key, config, state_width),
        loss=cross_dqn_loss(config, view, *limits),
        evaluate=evaluate,
    )

    def with_target():
        """Returns the initial state, with the target network a copy of the network."""
        state = phase.init()
        return dataclasses.replace(state, variables=state.params)

    return dataclasses.replace(phase, init=with_target)
