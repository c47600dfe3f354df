"""User behaviour: requests, drifting intents, visits and histories. It may use latents."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import struct

from ega_jax.data.market.clicks import (
    CLICK,
    SURFACES,
    Array,
    Situation,
    affinity,
    creative_effect,
)
from ega_jax.data.market.requests import Requests
from ega_jax.data.market.sampling import below, choose, compiler_options
from ega_jax.data.market.world import (
    CITY_SIZE,
    PLACE_NOISE,
    PLACE_UNIT,
    Latents,
    Observables,
    World,
)

# Probabilities that the intent stays the same, and that it becomes another POI of its cell; else
# it becomes a POI of the cell of one of the user's favourites.
KEEP_INTENT, SAME_CELL = 0.5, 0.3
RUN_LENGTH = 4  # Visits per intent in an initial history.
VISIT_OPTIONS = 4  # Number of POIs that a user compares before visiting one.
VISIT_SHARE = 0.5  # Share of sessions followed by a visit outside the slate.
CREATIVE_SHARPNESS = 3.0  # Logit of a creative per unit of its effect on the visitor.
MOVEMENT = 1.0  # Standard deviation of the user's place around home, kilometres.
SURFACE_SHARES = (0.6, 0.3, 0.1)  # Shares of requests on each of `SURFACES`.


@struct.dataclass
class Users:
    """All users between two chunks of sessions."""

    history_poi: jax.Array  # [U, T] int32, most recent last, -1 padding on the left.
    history_creative: jax.Array  # [U, T] int32, likewise.
    intent: jax.Array  # [U] int32, a POI like those the user looks for.


def arrive(
    key: jax.Array,
    latents: Latents,
    observables: Observables,
    users: Users,
    hour: jax.Array,
    day: jax.Array,
    size: int,
) -> tuple[Requests, Situation]:
    """Draws the users of a chunk, and where and why they come.

    Args:
      key: random key.
      latents: the world's latents.
      observables: hold the users of each region.
      users: their histories and intents.
      hour: `[G * size]` of the sessions.
      day: of all sessions.
      size: sessions of each region, of different users, drawn by their activity.

    Returns:
      What the platform sees of the requests, and what determines the responses; `[G * size]`.
    """
    keys = jax.random.split(key, 4)
    members = observables.region_users
    rate = jnp.where(members >= 0, latents.user_log_activity[members], -jnp.inf)
    wait = jnp.log(jax.random.exponential(keys[0], members.shape))
    chosen = jax.lax.top_k(rate - wait, size)[1]
    user = jnp.take_along_axis(members, chosen, axis=1).reshape(-1)
    intent = drift(keys[1], latents, user, users.intent[user], day)
    moves = jax.random.normal(keys[2], (2, len(user), 2))
    place = latents.user_home[user] + MOVEMENT * moves[0]
    shares = jnp.array(SURFACE_SHARES)
    surface = choose(jax.random.uniform(keys[3], user.shape), shares[None])
    situation = Situation(user, intent, place, hour, surface)
    return Requests(
        user=user,
        history_poi=users.history_poi[user],
        history_creative=users.history_creative[user],
        context=context(situation, PLACE_NOISE * moves[1]),
    ), situation


def context(situation: Situation, noise: jax.Array) -> jax.Array:
    """Returns what a request shows of its situation `[B, 7]`.

    The columns are the place with noise `[B, 2]` in kilometres, from the middle of the region in
    units of `PLACE_UNIT`, sine and cosine of the hour, and the surface, one-hot.
    """
    place = (situation.place + noise - CITY_SIZE / 2) / PLACE_UNIT
    angle = 2 * jnp.pi / 24 * situation.hour[:, None]
    surface = jax.nn.one_hot(situation.surface, len(SURFACES))
    return jnp.concatenate([place, jnp.sin(angle), jnp.cos(angle), surface], axis=1)


def favourite(uniform: jax.Array, latents: Latents, user: jax.Array) -> jax.Array:
    """Draws favourite POIs of users `[B]` by their weights, one for each uniform `[B, N]`."""
    shape = (*uniform.shape, latents.user_weight.shape[1])
    weight = jnp.broadcast_to(latents.user_weight[user][:, None, :], shape)
    return jnp.take_along_axis(latents.user_favourite[user], choose(uniform, weight), axis=1)


def alike(uniform: jax.Array, latents: Latents, poi: Array, day: jax.Array) -> jax.Array:
    """Draws POIs of the cells of `poi`, of those open on that day."""
    cell = latents.poi_cell[poi]
    place = latents.cell_start[cell] + below(uniform, latents.cell_open[day, cell])
    return latents.cell_member[place]


def drift(
    key: jax.Array, latents: Latents, user: jax.Array, intent: jax.Array, day: jax.Array
) -> jax.Array:
    """Draws the intents `[B]` of users `[B]` in their next session."""
    step, liking, place = jax.random.uniform(key, (3, len(user)))
    liked = favourite(liking[:, None], latents, user)[:, 0]
    like = jnp.where(step < KEEP_INTENT + SAME_CELL, intent, liked)
    return jnp.where(step < KEEP_INTENT, intent, alike(place, latents, like, day))


def visit(key: jax.Array, latents: Latents, situation: Situation, day: jax.Array) -> jax.Array:
    """Draws a POI `[B]` that users `[B]` visit, in the intent's cell, by utility."""
    uniform = jax.random.uniform(key, (len(situation.user), VISIT_OPTIONS + 1))
    options = alike(uniform[:, 1:], latents, situation.intent[:, None], day)
    utility = affinity(latents, situation, options).utility(CLICK)
    choice = choose(uniform[:, 0], jax.nn.softmax(utility))
    return jnp.take_along_axis(options, choice[:, None], axis=1)[:, 0]


def pleasing_creative(
    key: jax.Array, latents: Latents, poi_creatives: jax.Array, user: jax.Array, items: jax.Array
) -> jax.Array:
    """Draws the creative `[B, N]` of items `[B, N]` that users `[B]` notice."""
    options = poi_creatives[items]
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
        seen = (world.latents, world.observables.poi_creatives, jnp.asarray(user), visits)
        histories.append(play(jax.random.fold_in(key, i), *seen, length=t))
    poi, creative = (jnp.concatenate(parts)[:num_users] for parts in zip(*histories, strict=True))
    return Users(poi, creative, poi[:, -1])


def _start_block(
    key: jax.Array,
    latents: Latents,
    poi_creatives: jax.Array,
    user: jax.Array,
    visits: jax.Array | None,
    length: int,
) -> tuple[jax.Array, jax.Array]:
    """Returns initial histories `[B, T]` of users `[B]`: POIs and creatives."""
    keys = jax.random.split(key, 3)
    if visits is None:
        uniform = jax.random.uniform(keys[0], (len(user), 2 + -(-length // RUN_LENGTH)))
        intents = favourite(uniform[:, 2:], latents, user)
        intents = jnp.repeat(intents, RUN_LENGTH, axis=1)[:, -length:]
        flat = jnp.repeat(user, length)
        hour = jnp.repeat(24 * uniform[:, 1], length)
        home = latents.user_home[flat]
        past = Situation(flat, intents.reshape(-1), home, hour, jnp.zeros_like(flat))
        visits = visit(keys[1], latents, past, jnp.int32(0)).reshape(intents.shape)
        shortest = max(length // 4, 1)
        known = shortest + below(uniform[:, 0], length + 1 - shortest)
        visits = jnp.where(jnp.arange(length)[None, :] >= length - known[:, None], visits, -1)
    return visits, pleasing_creative(keys[2], latents, poi_creatives, user, visits)
