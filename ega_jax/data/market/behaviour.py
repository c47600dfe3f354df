"""User behaviour between requests: drifting intents, visits and histories."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.data.market.clicks import CLICK, affinity, creative_effect
from ega_jax.data.market.sampling import below, choose
from ega_jax.data.market.world import Latents, Supply, World

# Probabilities that the intent stays the same, and that it becomes another POI of its subcategory;
# else it becomes a POI like one of the user's favourites.
KEEP_INTENT, SAME_SUBCATEGORY = 0.5, 0.3
RUN_LENGTH = 4  # Visits per intent in an initial history.
VISIT_OPTIONS = 4  # Number of POIs that a user compares before visiting one.
VISIT_SHARE = 0.5  # Share of sessions followed by a visit outside the slate.
CREATIVE_SHARPNESS = 3.0  # Logit of a creative per unit of its effect on the visitor.


@struct.dataclass
class Users:
    """All users between two chunks of sessions."""

    history_poi: jax.Array  # [U, T] int32, most recent last, -1 padding on the left.
    history_creative: jax.Array  # [U, T] int32, likewise.
    intent: jax.Array  # [U] int32, a POI like those the user looks for.


def compiler_options() -> dict[str, int]:
    """Returns options of `jax.jit` that cut compile time by a third; run time stays the same."""
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}


def favourite(uniform: jax.Array, latents: Latents, user: jax.Array) -> jax.Array:
    """Draws favourite POIs of users `[B]` by their weights, one for each uniform `[B, N]`."""
    shape = (*uniform.shape, latents.user_weight.shape[1])
    weight = jnp.broadcast_to(latents.user_weight[user][:, None, :], shape)
    return jnp.take_along_axis(latents.user_favourite[user], choose(uniform, weight), axis=1)


def drift(
    key: jax.Array, latents: Latents, supply: Supply, user: jax.Array, intent: jax.Array
) -> jax.Array:
    """Draws the intents `[B]` of users `[B]` in their next session."""
    step, liking, place = jax.random.uniform(key, (3, len(user)))
    liked = favourite(liking[:, None], latents, user)[:, 0]
    like = jnp.where(step < KEEP_INTENT + SAME_SUBCATEGORY, intent, liked)
    moved = supply.pois.draw(place, supply.subcategory[like])
    return jnp.where(step < KEEP_INTENT, intent, moved)


def visit(
    key: jax.Array, latents: Latents, supply: Supply, user: jax.Array, intent: jax.Array
) -> jax.Array:
    """Draws a POI `[B]` that users `[B]` visit, in the intent's subcategory, by utility."""
    uniform = jax.random.uniform(key, (len(user), VISIT_OPTIONS + 1))
    group = jnp.broadcast_to(supply.subcategory[intent][:, None], (len(user), VISIT_OPTIONS))
    options = supply.pois.draw(uniform[:, 1:], group)
    utility = affinity(latents, user, intent, options).utility(CLICK)
    choice = choose(uniform[:, 0], jax.nn.softmax(utility))
    return jnp.take_along_axis(options, choice[:, None], axis=1)[:, 0]


def pleasing_creative(
    key: jax.Array, latents: Latents, supply: Supply, user: jax.Array, items: jax.Array
) -> jax.Array:
    """Draws the creative `[B, N]` of items `[B, N]` that users `[B]` notice."""
    options = supply.poi_creatives[items]
    effect = creative_effect(latents, user, options.reshape(len(user), -1))
    logits = CREATIVE_SHARPNESS * effect.reshape(options.shape)
    probabilities = jax.nn.softmax(logits, axis=-1, where=options >= 0)
    choice = choose(jax.random.uniform(key, items.shape), probabilities)
    creative = jnp.take_along_axis(options, choice[..., None], axis=-1)[..., 0]
    return jnp.where(items >= 0, creative, -1)


def append(history: jax.Array, new: jax.Array) -> jax.Array:
    """Appends the non-negative entries of `new [B, N]` to histories `[B, T]`; drops the oldest."""
    order = jnp.argsort(new < 0, axis=1, stable=True)
    longer = jnp.concatenate([history, jnp.take_along_axis(new, order, axis=1)], axis=1)
    shift = jnp.sum(new >= 0, axis=1, keepdims=True)
    return jnp.take_along_axis(longer, shift + jnp.arange(history.shape[1])[None, :], axis=1)


def start(key: jax.Array, world: World) -> Users:
    """Makes initial histories: real visits if the world has them, else visits by random intents."""
    num_users, t = world.config.num_users, world.config.history_length
    block = min(world.config.chunk_size, num_users)
    play = jax.jit(_start_block, static_argnames="length", compiler_options=compiler_options())
    histories = []
    for i, first in enumerate(range(0, num_users, block)):
        user = np.minimum(np.arange(first, first + block), num_users - 1)
        visits = None if world.visits is None else jnp.asarray(world.visits[user])
        block_key = jax.random.fold_in(key, i)
        histories.append(
            play(block_key, world.latents, world.supply, jnp.asarray(user), visits, length=t)
        )
    poi, creative = (jnp.concatenate(parts)[:num_users] for parts in zip(*histories, strict=True))
    return Users(poi, creative, poi[:, -1])


def _start_block(
    key: jax.Array,
    latents: Latents,
    supply: Supply,
    user: jax.Array,
    visits: jax.Array | None,
    length: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns initial histories `[B, T]` of users `[B]`: POIs and creatives."""
    intent_key, visit_key, creative_key = jax.random.split(key, 3)
    if visits is None:
        uniform = jax.random.uniform(intent_key, (len(user), 1 + -(-length // RUN_LENGTH)))
        intents = favourite(uniform[:, 1:], latents, user)
        intents = jnp.repeat(intents, RUN_LENGTH, axis=1)[:, -length:]
        flat = (jnp.repeat(user, length), intents.reshape(-1))
        visits = visit(visit_key, latents, supply, *flat).reshape(intents.shape)
        shortest = max(length // 4, 1)
        known = shortest + below(uniform[:, 0], length + 1 - shortest)
        visits = jnp.where(jnp.arange(length)[None, :] >= length - known[:, None], visits, -1)
    return visits, pleasing_creative(creative_key, latents, supply, user, visits)
