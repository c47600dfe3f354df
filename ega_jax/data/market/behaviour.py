"""What users do between requests: intents that drift, visits, and the histories they leave."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.data.market.clicks import CLICK, affinity, creative_effect
from ega_jax.data.market.sampling import below, choose
from ega_jax.data.market.world import Latents, Supply, World

KEEP_INTENT, SAME_SUBCATEGORY = 0.5, 0.3  # Else the intent turns to one of the user's favourites.
RUN_LENGTH = 4  # Visits of one intent in a starting history.
VISIT_OPTIONS = 4  # POIs a user compares before visiting one.
VISIT_SHARE = 0.5  # Sessions followed by a visit that no slate led to.
CREATIVE_SHARPNESS = 3.0  # How surely the creative a visitor sees is the one that pleases.


@struct.dataclass
class Users:
    """All users between two chunks of sessions."""

    history_poi: jax.Array  # [U, T] int32, most recent last, -1 padding on the left.
    history_creative: jax.Array  # [U, T] int32, likewise.
    intent: jax.Array  # [U] int32, a POI like those looked for.


def compiler_options() -> dict[str, int]:
    """Options of `jax.jit` that compile a market in two thirds of the time; it runs as fast."""
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}


def favourite(uniform: jax.Array, latents: Latents, user: jax.Array) -> jax.Array:
    """Draws favourite POIs of users `[B]` by their weights, one for each uniform `[B, N]`."""
    shape = (*uniform.shape, latents.user_weight.shape[1])
    weight = jnp.broadcast_to(latents.user_weight[user][:, None, :], shape)
    return jnp.take_along_axis(latents.user_favourite[user], choose(uniform, weight), axis=1)


def drift(
    key: jax.Array, latents: Latents, supply: Supply, user: jax.Array, intent: jax.Array
) -> jax.Array:
    """Moves the intent `[B]` of users `[B]` on to their next session."""
    step, liking, place = jax.random.uniform(key, (3, len(user)))
    liked = favourite(liking[:, None], latents, user)[:, 0]
    like = jnp.where(step < KEEP_INTENT + SAME_SUBCATEGORY, intent, liked)
    moved = supply.pois.draw(place, supply.subcategory[like])
    return jnp.where(step < KEEP_INTENT, intent, moved)


def visit(
    key: jax.Array, latents: Latents, supply: Supply, user: jax.Array, intent: jax.Array
) -> jax.Array:
    """Draws a POI `[B]` that users `[B]` visit: of the intent's subcategory, by utility."""
    uniform = jax.random.uniform(key, (len(user), VISIT_OPTIONS + 1))
    group = jnp.broadcast_to(supply.subcategory[intent][:, None], (len(user), VISIT_OPTIONS))
    options = supply.pois.draw(uniform[:, 1:], group)
    utility = affinity(latents, user, intent, options).utility(CLICK)
    choice = choose(uniform[:, 0], jax.nn.softmax(utility))
    return jnp.take_along_axis(options, choice[:, None], axis=1)[:, 0]


def pleasing_creative(
    key: jax.Array, latents: Latents, supply: Supply, user: jax.Array, items: jax.Array
) -> jax.Array:
    """Draws the creative `[B, N]` of items `[B, N]` that users `[B]` take notice of."""
    options = supply.poi_creatives[items]
    effect = creative_effect(latents, user, options.reshape(len(user), -1))
    logits = CREATIVE_SHARPNESS * effect.reshape(options.shape)
    probabilities = jax.nn.softmax(logits, axis=-1, where=options >= 0)
    choice = choose(jax.random.uniform(key, items.shape), probabilities)
    creative = jnp.take_along_axis(options, choice[..., None], axis=-1)[..., 0]
    return jnp.where(items >= 0, creative, -1)


def append(history: jax.Array, new: jax.Array) -> jax.Array:
    """Shifts the non-negative entries of `new [B, N]` into histories `[B, T]`, oldest out."""
    order = jnp.argsort(new < 0, axis=1, stable=True)
    longer = jnp.concatenate([history, jnp.take_along_axis(new, order, axis=1)], axis=1)
    shift = jnp.sum(new >= 0, axis=1, keepdims=True)
    return jnp.take_along_axis(longer, shift + jnp.arange(history.shape[1])[None, :], axis=1)


def start(key: jax.Array, world: World) -> Users:
    """Gives every user a history: real visits where the world has them, else runs of intents."""
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
    """Starting histories `[B, T]` of users `[B]`: POIs and creatives."""
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
