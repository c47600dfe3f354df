"""A generator small enough to compile in a second, its catalogue, and random sessions."""

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.generation import generator
from ega_jax.generation.generator import Generator, GeneratorConfig
from ega_jax.types import Catalogue

P, R, W, C, K, T = 9, 12, 5, 2, 3, 4
CONFIG = GeneratorConfig(
    num_codes=W, num_layers=C, num_slots=K, history_length=T, width=16, num_heads=2, hidden=16,
    encoder_blocks=1, decoder_blocks=1,
)  # fmt: skip
_random = np.random.default_rng(0)
CATALOGUE = Catalogue(  # POI 8 owns no creative, POI 0 owns three.
    poi_codes=jnp.asarray(_random.integers(0, W, (P, C)), jnp.int32),
    creative_codes=jnp.asarray(_random.integers(0, W, (R, C)), jnp.int32),
    poi_creatives=jnp.asarray(
        [[0, 1, 2], [3, 4, -1], [5, -1, -1], [6, -1, -1], [7, 8, -1], [9, -1, -1], [10, -1, -1],
         [11, -1, -1], [-1, -1, -1]], jnp.int32,
    ),
)  # fmt: skip


def init_params(config=CONFIG, scale=3.0):
    """Fresh parameters, larger than at initialisation so that predictions differ."""
    params = jax.jit(lambda key: generator.init(key, config, CATALOGUE))(jax.random.key(0))
    return jax.tree.map(lambda x: x * scale if x.ndim > 1 else x, params)


def forward(params, history_poi, history_creative, poi_codes, creative_codes, config=CONFIG):
    """Teacher-forced logits of whole sessions."""

    def whole(model):
        memory = model.encode(history_poi, history_creative, CATALOGUE)
        return model(memory, poi_codes, creative_codes)

    return Generator(config).apply({"params": params}, method=whole)


def random_inputs(seed=1, rows=3):
    """Histories and the codes of slates, as the arguments of `forward`."""
    rng = np.random.default_rng(seed)
    ids = lambda high, shape: rng.integers(0, high, shape).astype(np.int32)
    return ids(P, (rows, T)), ids(R, (rows, T)), ids(W, (rows, K, C)), ids(W, (rows, K, C))


def random_batch(seed=2, rows=4):
    """A training batch with ragged histories and slates."""
    rng = np.random.default_rng(seed)
    history_poi, history_creative, *_ = random_inputs(seed, rows)
    past = np.arange(T) >= rng.integers(0, T + 1, (rows, 1))
    filled = np.arange(K) < rng.integers(1, K + 1, (rows, 1))
    with_creative = filled & (rng.random((rows, K)) < 0.7)
    return {
        "history_poi": np.where(past, history_poi, -1),
        "history_creative": np.where(past, history_creative, -1),
        "target_poi": np.where(filled, rng.integers(0, P, (rows, K)), -1).astype(np.int32),
        "target_creative": np.where(with_creative, rng.integers(0, R, (rows, K)), -1).astype(
            np.int32
        ),
        "target_weight": np.where(filled, rng.choice([0.1, 1.0], (rows, K)), 0).astype(np.float32),
    }
