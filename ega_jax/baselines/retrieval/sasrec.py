"""SASRec: causal self-attention over the ids of past items (Kang and McAuley, ICDM 2018).

The input of a position is its item's embedding plus a learned position embedding. The state of a
position scores every item by the inner product with the same item embeddings. All positions of a
sequence are trained at once, each to predict the next item. The blocks are those of the generator.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import chex
import jax
import jax.numpy as jnp
from flax import linen as nn

from ega_jax.baselines.retrieval.full_ranking import Scores
from ega_jax.baselines.retrieval.whole_sequences import training_batches
from ega_jax.data.sequences import SequenceDataset
from ega_jax.generation.network import NetworkSettings
from ega_jax.generation.pretraining import weighted_mean
from ega_jax.generation.transformer import Block, row_wise_dot
from ega_jax.setting import setting
from ega_jax.training.loop import Phase
from ega_jax.training.optimizer import OptimizerConfig, make_optimizer
from ega_jax.training.settings import LoopSettings
from ega_jax.training.state import TrainState, make_train_step
from ega_jax.types import Params

LOSSES = ("softmax", "binary")


@dataclasses.dataclass(frozen=True)
class SasrecSettings(NetworkSettings):
    """The group `sasrec`: the network's sizes and its loss."""

    num_heads: int = 2
    hidden: int = 256
    loss: str = setting("softmax", choices=LOSSES)  # binary: SASRec's own, one negative.
    blocks: int = setting(2, at_least=1)
    dropout_rate: float = setting(0.4, at_least=0, below=1)  # On inputs and in blocks.


@dataclasses.dataclass(frozen=True)
class SasrecConfig(SasrecSettings):
    """The network's sizes and its loss; the legend of the letters is in `types.py`."""

    num_items: int = dataclasses.field(kw_only=True)  # P
    history_length: int = dataclasses.field(kw_only=True)  # T


class Sasrec(nn.Module):
    """The network; every method takes any leading batch axes."""

    config: SasrecConfig

    def setup(self):
        """Declares embeddings and blocks."""
        c = self.config
        small = nn.initializers.normal(0.02)
        self.items = self.param("items", small, (c.num_items, c.width))
        self.positions = self.param("positions", small, (c.history_length, c.width))
        self.dropout = nn.Dropout(c.dropout_rate)
        self.blocks = [
            Block(c.width, c.num_heads, c.hidden, c.dtype, dropout_rate=c.dropout_rate)
            for _ in range(c.blocks)
        ]
        self.norm = nn.RMSNorm(dtype=c.dtype)

    def __call__(self, history: jax.Array, *, deterministic: bool = True) -> jax.Array:
        """Returns causal states `[..., T, D]` of the positions of `history [..., T]`.

        Positions are counted from the most recent one, so padding on the left (-1) has no effect.
        """
        length = history.shape[-1]
        where = history >= 0
        x = self.embed(history) * self.config.width**0.5 + self.positions[-length:]
        x = self.dropout(x.astype(self.config.dtype), deterministic=deterministic)
        seen = jnp.tril(jnp.ones((length, length), bool)) & where[..., None, None, :]
        for block in self.blocks:
            x = block(x, seen, deterministic=deterministic)
        return self.norm(x)

    def embed(self, items: jax.Array) -> jax.Array:
        """Returns embeddings `[..., D]` of items `[...]`; id -1 gets the embedding of item 0."""
        return self.items[jnp.maximum(items, 0)]

    def scores(self, states: jax.Array) -> jax.Array:
        """Returns scores `[..., P]` of all items from states `[..., D]`."""
        return row_wise_dot(states, self.items.T.astype(states.dtype)).astype(jnp.float32)


def init(key: chex.PRNGKey, config: SasrecConfig) -> Params:
    """Returns initial parameters; pure, for `eval_shape`."""
    return Sasrec(config).init(key, jnp.zeros((1, config.history_length), jnp.int32))["params"]


def apply(params: Params, config: SasrecConfig, function, **kwargs: Any) -> Any:
    """Calls `function(network)` with bound parameters; `kwargs` are passed to Flax's `apply`."""
    return Sasrec(config).apply({"params": params}, method=function, **kwargs)


def softmax_nll(network: Sasrec, states: jax.Array, following: jax.Array) -> jax.Array:
    """Returns the NLL `[B, T]` in nats of the next items, by a softmax over all items."""
    logits = network.scores(states)
    picked = jnp.take_along_axis(logits, jnp.maximum(following, 0)[..., None], axis=-1)[..., 0]
    return jax.nn.logsumexp(logits, axis=-1) - picked


def binary_nll(
    network: Sasrec, states: jax.Array, following: jax.Array, negatives: jax.Array
) -> jax.Array:
    """Returns SASRec's binary cross-entropy `[B, T]`: next item against one negative (eq. 9)."""
    score = lambda items: jnp.sum(states * network.embed(items), axis=-1).astype(jnp.float32)
    return jax.nn.softplus(-score(following)) + jax.nn.softplus(score(negatives))


def draw_negatives(key: chex.PRNGKey, sequence: jax.Array, num_items: int) -> jax.Array:
    """Draws a negative `[B, T]` per step of `sequence [B, T + 1]`; -1 if the sequence has it."""
    b, t = sequence.shape
    drawn = jax.random.randint(key, (b, t - 1), 0, num_items)
    taken = (drawn[..., None] == sequence[:, None, :]).any(axis=-1)
    return jnp.where(taken, -1, drawn)


def sasrec_loss(config: SasrecConfig) -> Callable:
    """Returns the loss of the phase, as `make_train_step` takes it."""

    def loss(params: Params, variables, batch: Mapping[str, jax.Array], key: chex.PRNGKey):
        history = batch["history_poi"]
        sequence = jnp.concatenate([history, batch["target_poi"]], axis=1)
        dropout_key, negative_key = jax.random.split(key)
        where = history >= 0

        def forward(network: Sasrec):
            states = network(history, deterministic=False)
            if config.loss == "softmax":
                return softmax_nll(network, states, sequence[:, 1:]), where
            negatives = draw_negatives(negative_key, sequence, config.num_items)
            nll = binary_nll(network, states, sequence[:, 1:], negatives)
            return nll, where & (negatives >= 0)

        nll, counts = apply(params, config, forward, rngs={"dropout": dropout_key})
        return weighted_mean(nll, counts.astype(jnp.float32)), ({}, variables)

    return loss


def sasrec_phase(
    dataset: SequenceDataset,
    config: SasrecConfig,
    optimizer: OptimizerConfig,
    training: LoopSettings,
    seed: int,
    evaluate: Callable[[Params], dict[str, float]] | None = None,
    evaluate_every: int = 0,
) -> Phase:
    """Returns the phase "sasrec", which trains on the training items.

    Args:
      dataset: interaction sequences.
      config: the network's config.
      optimizer: the optimizer's config.
      training: settings of batches, steps and checkpoints.
      seed: seeds the parameters, the order, dropout and negatives.
      evaluate: measures parameters on held-out items.
      evaluate_every: steps between evaluations; 0: never.
    """
    init_key, step_key = jax.random.split(jax.random.key(seed))
    transformation = make_optimizer(optimizer, training.num_steps)
    batches = training_batches(
        dataset,
        batch_size=training.batch_size,
        history_length=config.history_length,
        seed=seed,
    )
    return Phase(
        name="sasrec",
        init=lambda: TrainState.create(init(init_key, config), transformation),
        step=make_train_step(sasrec_loss(config), transformation, step_key),
        batches=batches,
        evaluate=evaluate and (lambda state: evaluate(state.params)),
        evaluate_every=evaluate_every,
        num_steps=training.num_steps,
        checkpoint_every=training.checkpoint_every,
        log_every=training.log_every,
    )


def make_scores(config: SasrecConfig) -> Callable[[Params], Scores]:
    """Returns `params -> scores`, compiled once: scores `[B, P]` of next items by `[B, T]`."""

    @jax.jit
    def score(params: Params, history: jax.Array) -> jax.Array:
        forward = lambda network: network.scores(network(history)[:, -1])
        return apply(params, config, forward)

    return lambda params: functools.partial(score, params)
