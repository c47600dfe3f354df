"""A reward model that compiles in a second, its items, and random logged sessions."""

import jax
import jax.numpy as jnp
import numpy as np

from ega_jax.reward import model
from ega_jax.reward.model import Items, RewardConfig
from ega_jax.types import Catalogue, organic_pois

P, R, W, C, K, T, N, B = 9, 12, 5, 2, 3, 4, 6, 5
CONFIG = RewardConfig(
    num_codes=W, num_layers=C, num_slots=K, history_length=T, width=8, num_heads=2, hidden=8,
)  # fmt: skip
_random = np.random.default_rng(0)
ITEMS = Items(
    catalogue=Catalogue(
        poi_codes=jnp.asarray(_random.integers(0, W, (P, C)), jnp.int32),
        creative_codes=jnp.asarray(_random.integers(0, W, (R, C)), jnp.int32),
        poi_creatives=jnp.asarray(np.arange(2 * P).reshape(P, 2) % R, jnp.int32),
    ),
    poi_embedding=jnp.asarray(_random.normal(size=(P, 6)), jnp.float32),
    creative_embedding=jnp.asarray(_random.normal(size=(R, 4)), jnp.float32),
)


def init_params(config=CONFIG):
    """Fresh parameters with noise, so that recency counts and predictions differ."""
    params = jax.jit(lambda key: model.init(key, config, ITEMS))(jax.random.key(0))
    noise = np.random.default_rng(1)
    shaken = lambda x: x + (0.2 * noise.normal(size=x.shape)).astype(np.float32)
    return jax.tree.map(lambda x: shaken(x) if x.ndim > 1 else x, params)


def predict(params, batch, config=CONFIG):
    """Predictions for a batch of logged slates."""
    request = batch["history_poi"], batch["history_creative"], organic_pois(batch)
    memory = model.encode(params, config, ITEMS, *request)
    shown = batch["shown_poi"], batch["shown_creative"], batch["shown_is_ad"]
    return model.predict(params, config, ITEMS, memory, *shown)


def random_batch(seed=2, rows=B):
    """Sessions with ragged histories, candidates and slates, and their feedback."""
    rng = np.random.default_rng(seed)
    ids = lambda high, *shape: rng.integers(0, high, (rows, *shape)).astype(np.int32)
    past = np.arange(T) >= rng.integers(0, T + 1, (rows, 1))
    filled = np.arange(K) < rng.integers(1, K + 1, (rows, 1))
    item = np.stack([rng.permutation(P)[:N] for _ in range(rows)]).astype(np.int32)
    click = filled & (rng.random((rows, K)) < 0.5)
    return {
        "history_poi": np.where(past, ids(P, T), -1),
        "history_creative": np.where(past, ids(R, T), -1),
        "item": np.where(np.arange(N) < rng.integers(K, N + 1, (rows, 1)), item, -1),
        "is_ad": rng.random((rows, N)) < 0.5,
        "shown_poi": np.where(filled, item[:, :K], -1),
        "shown_creative": np.where(filled & (rng.random((rows, K)) < 0.8), ids(R, K), -1),
        "shown_is_ad": filled & (rng.random((rows, K)) < 0.5),
        "click_poi": click,
        "click_image": filled & (rng.random((rows, K)) < 0.5),
        "convert": click & (rng.random((rows, K)) < 0.5),
        "session": np.arange(rows, dtype=np.int32),
    }
