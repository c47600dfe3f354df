"""A handful of items, random logged sessions, and a short training on them."""

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ega_jax.reward.model import Items
from ega_jax.types import Catalogue

P, R, W, C, K, T, N, B = 9, 12, 5, 2, 3, 4, 6, 4
SIZES = {"num_codes": W, "num_layers": C, "num_slots": K, "history_length": T, "hidden": 8}
_random = np.random.default_rng(0)
ITEMS = Items(
    catalogue=Catalogue(  # POI 8 owns no creative, the others two, or one.
        poi_codes=jnp.asarray(_random.integers(0, W, (P, C)), jnp.int32),
        creative_codes=jnp.asarray(_random.integers(0, W, (R, C)), jnp.int32),
        poi_creatives=jnp.asarray(
            [[0, 1], [2, 3], [4, 5], [6, 7], [8, -1], [9, -1], [10, -1], [11, -1], [-1, -1]],
            jnp.int32,
        ),
    ),
    poi_embedding=jnp.asarray(_random.normal(size=(P, 6)), jnp.float32),
    creative_embedding=jnp.asarray(_random.normal(size=(R, 4)), jnp.float32),
)


def shaken(params, seed=1, noise=0.3):
    """Parameters with noise, so that nothing is zero and predictions differ."""
    rng = np.random.default_rng(seed)
    return jax.tree.map(lambda x: x + (noise * rng.normal(size=x.shape)).astype(np.float32), params)


def random_batch(seed=2, rows=B):
    """Sessions with ragged histories and slates, and their feedback."""
    rng = np.random.default_rng(seed)
    ids = lambda high, *shape: rng.integers(0, high, (rows, *shape)).astype(np.int32)
    past = np.arange(T) >= rng.integers(0, T + 1, (rows, 1))
    filled = np.arange(K) < rng.integers(1, K + 1, (rows, 1))
    item = np.stack([rng.permutation(P)[:N] for _ in range(rows)]).astype(np.int32)
    click = filled & (rng.random((rows, K)) < 0.5)
    shown = np.where(filled, item[:, :K], -1)
    return {
        "history_poi": np.where(past, ids(P, T), -1),
        "history_creative": np.where(past, ids(R, T), -1),
        "item": item,
        "shown_poi": shown,
        "shown_creative": np.where(filled, ids(R, K), -1),
        "shown_is_ad": filled & (rng.random((rows, K)) < 0.5),
        "click_poi": click,
        "click_image": filled & (rng.random((rows, K)) < 0.5),
        "convert": click & (rng.random((rows, K)) < 0.5),
        "target_poi": shown,
        "target_weight": np.where(click, 1.0, 0.1 * filled).astype(np.float32),
    }


def fit(loss, params, batch, steps, metric="loss", learning_rate=1e-2):
    """A metric `[steps]` of a loss while Adam fits one batch, and the parameters."""
    optimizer = optax.adam(learning_rate)

    @jax.jit
    def run(params):
        def step(carry, number):
            params, state = carry
            key = jax.random.fold_in(jax.random.key(0), number)
            (value, (metrics, _)), grads = jax.value_and_grad(loss, has_aux=True)(
                params, (), batch, key
            )
            updates, state = optimizer.update(grads, state)
            return (optax.apply_updates(params, updates), state), (metrics | {"loss": value})[
                metric
            ]

        (params, _), values = jax.lax.scan(
            step, (params, optimizer.init(params)), jnp.arange(steps)
        )
        return values, params

    return run(params)
