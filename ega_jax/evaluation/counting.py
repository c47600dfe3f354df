"""A rewriting of functions that counts FLOPs while they run, every loop by its trips.

XLA's cost analysis counts the body of a loop once, and so do `jax.experimental.roofline` and
Pallas' `estimate_cost`. The trips in optimised code (`known_trip_count`) leave out loops whose
length depends on data, which do most of a search for prices (`generation.compaction`). And of a
conditional XLA counts the dearest branch: of serving by GSP, the searches of a learned price.

So FLOPs are counted while the function runs: its jaxpr is evaluated, and each loop and each branch
adds up what it did. The count of the primitives outside of loops comes from XLA, so that a function
without loops has XLA's figure.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax
from jax.extend.core import ClosedJaxpr, JaxprEqn, Literal
from jax.sharding import PartitionSpec as P

Values = Sequence[Any]
Flops = float | jax.Array


def counting(function: Callable) -> Callable[..., jax.Array]:
    """Returns a function of the same arguments that returns FLOPs, float32, to about six digits.

    - A product of `[M, K]` and `[K, N]` counts 2MNK, an elementwise operation one for each element
      of its result (also of integers), a reduction one for each element that it reads, and a copy
      nothing, all by XLA's cost analysis. Transcendental functions, which XLA lists apart, count
      one as well. What XLA cannot count, such as `top_k` and callbacks, counts nothing.
    - A loop counts its condition and its body once for each trip.
    - A conditional counts the branch that runs. Under `vmap` JAX runs all branches.
    - A `shard_map` counts the work of all devices.

    It counts the function as it is written. The compiler may save work, such as a result that
    nothing reads or that is computed twice.

    Args:
      function: a function that `jax.jit` compiles, without collectives in a `shard_map`.
    """

    def count(*arguments: Any) -> jax.Array:
        traced = jax.make_jaxpr(function)(*arguments)
        return _counted(traced)(jax.tree.leaves(arguments))[1]

    return count


def _counted(jaxpr: Any) -> Callable[[Values], tuple[list[Any], jax.Array]]:
    """Returns a function that evaluates a jaxpr and also returns the FLOPs."""
    own = _flops_of_primitives(jaxpr)

    def run(given: Values) -> tuple[list[Any], jax.Array]:
        found, flops = _evaluate(jaxpr, given)
        return found, jnp.float32(own + flops)

    return run


def _evaluate(jaxpr: Any, given: Values) -> tuple[list[Any], Flops]:
    """Evaluates a jaxpr; returns its results and the FLOPs of its loops and branches."""
    inputs, constants = (*jaxpr.jaxpr.constvars, *jaxpr.jaxpr.invars), jaxpr.consts
    known = dict(zip(inputs, (*constants, *given), strict=True))
    value = lambda atom: atom.val if isinstance(atom, Literal) else known[atom]
    total = 0.0
    for equation in jaxpr.jaxpr.eqns:
        evaluate = _STRUCTURES.get(equation.primitive.name, _primitive)
        found, flops = evaluate(equation, [value(atom) for atom in equation.invars])
        known |= zip(equation.outvars, found, strict=True)
        total += flops
    return [value(atom) for atom in jaxpr.jaxpr.outvars], total


def _flops_of_primitives(jaxpr: Any) -> float:
    """XLA's count of the primitives outside of loops and branches, each on inputs of its own."""
    equations = list(_primitives(jaxpr))
    shapes = [[_shape(atom) for atom in equation.invars] for equation in equations]

    def apart(inputs: Sequence[Values]) -> list[Any]:
        pairs = zip(equations, inputs, strict=True)
        return [equation.primitive.bind(*given, **equation.params) for equation, given in pairs]

    costs = jax.jit(apart).lower(shapes).cost_analysis() or {}
    return sum(max(costs.get(name, 0.0), 0.0) for name in ("flops", "transcendentals"))


def _shape(atom: Any) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(atom.aval.shape, atom.aval.dtype)


def _primitives(jaxpr: Any) -> Iterator[JaxprEqn]:
    """Yields the equations outside of loops and branches, also those of called functions."""
    for equation in jaxpr.jaxpr.eqns:
        if equation.primitive.name in _CALLS:
            yield from _primitives(_called(equation))
        elif equation.primitive.name not in _STRUCTURES:
            yield equation


def _primitive(equation: JaxprEqn, given: Values) -> tuple[Values, Flops]:
    found = equation.primitive.bind(*given, **equation.params)
    return found if equation.primitive.multiple_results else [found], 0.0


def _called(equation: JaxprEqn) -> Any:
    params = equation.params
    return _closed(params["jaxpr"] if "jaxpr" in params else params["call_jaxpr"])


def _closed(jaxpr: Any) -> Any:
    """A jaxpr with its constants; those of `shard_map` and `checkpoint` have none."""
    return jaxpr if hasattr(jaxpr, "consts") else ClosedJaxpr(jaxpr, ())


def _call(equation: JaxprEqn, given: Values) -> tuple[Values, Flops]:
    return _evaluate(_called(equation), given)


def _scan(equation: JaxprEqn, given: Values) -> tuple[Values, Flops]:
    params, inside = equation.params, equation.params["jaxpr"].jaxpr
    body = _counted(params["jaxpr"])
    # Inputs are constants, carry and rows, results carry and rows. In the body rows lack an axis.
    is_row = lambda outer, inner: outer.aval.ndim > inner.aval.ndim
    num_carry = len(inside.outvars) - sum(map(is_row, equation.outvars, inside.outvars))
    last = len(given) - sum(map(is_row, equation.invars, inside.invars))
    first = last - num_carry

    def step(carry: Values, row: Values):
        found, flops = body([*given[:first], *carry, *row])
        return found[:num_carry], (found[num_carry:], flops)

    start, rows = given[first:last], given[last:]
    carry, (rows, flops) = lax.scan(step, start, rows, params["length"], params["reverse"])
    return [*carry, *rows], flops.sum()


def _while(equation: JaxprEqn, given: Values) -> tuple[Values, Flops]:
    params = equation.params
    first = params["cond_nconsts"]
    last = first + params["body_nconsts"]
    condition, body = _counted(params["cond_jaxpr"]), _counted(params["body_jaxpr"])
    asked = lambda values: condition([*given[:first], *values])

    def step(state: tuple[jax.Array, Values]):
        total, values = state
        (goes_on,), flops = asked(values)
        found, more = body([*given[first:last], *values])
        return total + flops + more, _where(goes_on, found, values)

    start = jnp.float32(0.0), given[last:]
    total, found = lax.while_loop(lambda state: asked(state[1])[0][0].any(), step, start)
    return found, total


def _where(goes_on: jax.Array, found: Values, before: Values) -> Values:
    """Under `vmap`, rows `[B]` of a loop that have ended keep their values."""
    if not goes_on.ndim:
        return found
    shaped = lambda x: goes_on.reshape(goes_on.shape + (1,) * (x.ndim - goes_on.ndim))
    return [jnp.where(shaped(x), x, old) for x, old in zip(found, before, strict=True)]


def _cond(equation: JaxprEqn, given: Values) -> tuple[Values, Flops]:
    branches = [_counted(jaxpr) for jaxpr in equation.params["branches"]]
    return lax.switch(given[0], branches, given[1:])


def _shard_map(equation: JaxprEqn, given: Values) -> tuple[Values, Flops]:
    params, share = equation.params, _counted(_called(equation))

    def shares(*given: Any):
        found, flops = share(given)
        return found, flops[None]

    mapped = jax.shard_map(
        shares,
        mesh=params["mesh"],
        in_specs=tuple(params["in_specs"]),
        out_specs=(list(params["out_specs"]), P(params["mesh"].axis_names)),
        check_vma=False,
    )
    found, flops = mapped(*given)
    return found, flops.sum()


_CALLS = "jit", "pjit", "closed_call", "checkpoint", "custom_jvp_call", "custom_vjp_call"
_STRUCTURES = dict.fromkeys(_CALLS, _call) | {
    "scan": _scan,
    "while": _while,
    "cond": _cond,
    "shard_map": _shard_map,
}
