"""FLOPs of a call and of serving a request, in which every loop counts by its trips."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from ega_jax.evaluation.counting import counting
from ega_jax.mechanism import Mechanism, serve
from ega_jax.types import AnyRequest


def flops_of(function: Callable, *arguments: Any) -> float:
    """Returns the FLOPs of a call, which is compiled and run; see `counting`."""
    return float(jax.jit(counting(function))(*arguments))


def flops_per_request(
    mechanism: Mechanism, request: AnyRequest, rule: str | None = None, **levers: float
) -> np.ndarray:
    """Returns the FLOPs of `Mechanism.allocate` for each request of a batch, served alone.

    They differ between requests, since searches skip what is empty or equal. All rules and levers
    share one compilation.

    Args:
      mechanism: the mechanism that serves.
      request: a batch of `B` requests.
      rule: the payment rule; default: the mechanism's.
      **levers: levers that replace the mechanism's.

    Returns:
      FLOPs `[B]`.

    Raises:
      UserError: as in `Mechanism.allocate`.
    """
    system, networks, pricing, request, *settings = mechanism.arguments(request, rule, **levers)
    alone = each_alone(request)
    return np.array([_served(system, networks, pricing, row, *settings) for row in alone])


def each_alone(request: AnyRequest) -> list[AnyRequest]:
    """Returns each request of a batch as a batch of one."""
    number = len(request.history_poi)
    return [jax.tree.map(lambda x, row=row: x[row : row + 1], request) for row in range(number)]


@functools.partial(jax.jit, static_argnums=2)
def _served(system, networks, pricing, *others) -> jax.Array:
    """FLOPs of `ega_jax.mechanism.serve`."""
    call = lambda system, networks, *others: serve(system, networks, pricing, *others)[0]
    return counting(call)(system, networks, *others)
