"""Data parallelism: the device mesh and the sharding of batches and states."""

import ctypes
import math
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ega_jax.errors import UserError


def join_hosts() -> None:
    """Joins the processes of a run on several hosts; call it before any other use of JAX."""
    jax.distributed.initialize()


def split_cpu() -> None:
    """Makes each CPU core a JAX device, for `map_rows`; call it before any other use of JAX.

    If `XLA_FLAGS` already sets the number of CPU devices, nothing changes.
    """
    if "xla_force_host_platform_device_count" not in os.environ.get("XLA_FLAGS", ""):
        jax.config.update("jax_num_cpu_devices", _num_cores())


def keep_freed_memory() -> None:
    """Keeps the memory that a step frees for the next one, on Linux with glibc.

    By default, glibc returns large buffers to the system after each step, and faulting them in
    again takes a fifth of a training step on a CPU. Elsewhere nothing changes.
    """
    if not sys.platform.startswith("linux") or not hasattr(libc := ctypes.CDLL(None), "mallopt"):
        return
    trim_threshold, mmap_max, arena_max = -1, -4, -8  # Names of glibc's `mallopt` without `M_`.
    libc.mallopt(arena_max, 1)
    libc.mallopt(mmap_max, 0)
    libc.mallopt(trim_threshold, 1 << 30)


def data_mesh(devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Returns a mesh with one axis, `data`, over the given devices (default: all of them).

    If the CPU was split into devices, training uses device 0: one device already computes on all
    cores, and does so faster than several.
    """
    if devices is None:
        is_split = jax.config.values["jax_num_cpu_devices"] > 0 and jax.default_backend() == "cpu"
        devices = jax.devices()[:1] if is_split else jax.devices()
    return jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)


def _num_cores() -> int:
    """Returns the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def replicated(mesh: Mesh) -> NamedSharding:
    """Returns the sharding that puts a full copy on every device of the mesh."""
    return NamedSharding(mesh, P())


def shard_batch(batch: Mapping[str, np.ndarray], mesh: Mesh) -> dict[str, jax.Array]:
    """Splits a host batch over the mesh along its leading axis.

    Args:
      batch: this process's rows of every field, `[B / processes, ...]`.
      mesh: a mesh from `data_mesh`.

    Returns:
      The global arrays `[B, ...]`, each device holding `B / devices` rows.

    Raises:
      UserError: a field's rows cannot be split evenly over the devices.
    """
    for name, value in batch.items():
        rows = value.shape[0] * jax.process_count()
        if rows % mesh.size:
            raise UserError(
                f"batch field {name!r} has {rows} rows, which {mesh.size} devices cannot share "
                f"evenly: choose a batch size divisible by {mesh.size}"
            )
    return jax.make_array_from_process_local_data(NamedSharding(mesh, P("data")), dict(batch))


def unbound(tree: Any) -> Any:
    """Copies arrays through the host, so that they are not committed to a device."""
    return jax.tree.map(jnp.asarray, jax.device_get(tree))


def split_rows(function: Callable[[Any], Any], rows: Any) -> Any:
    """Applies a function to a batch, split over this host's devices.

    Args:
      function: maps a batch of any size and treats its rows independently; other arrays that it
        reads are copied to all devices.
      rows: a pytree of `[B, ...]`. `min(B, devices)` devices are used; if they cannot share the
        rows evenly, the batch is padded with its last row.

    Returns:
      A pytree of `[B, ...]`.
    """
    count = len(jax.tree.leaves(rows)[0])
    devices = jax.local_devices()[:count]
    padded = math.ceil(count / len(devices)) * len(devices)
    if padded > count:
        row = np.minimum(np.arange(padded), count - 1)
        rows = jax.tree.map(lambda x: jnp.asarray(x)[row], rows)
    share = jax.shard_map(
        function,
        mesh=data_mesh(devices),
        in_specs=P("data"),
        out_specs=P("data"),
        check_vma=False,  # Loop carries have no varying-axis annotation.
    )
    found = share(rows)
    return found if padded == count else jax.tree.map(lambda x: x[:count], found)


def fill_devices(batches: Iterable[Mapping[str, np.ndarray]]) -> Iterator[dict[str, np.ndarray]]:
    """Concatenates batches `[B, ...]` until each has at least one row per device of this host.

    The last one may have fewer.
    """
    held: list[Mapping[str, np.ndarray]] = []
    for batch in batches:
        held.append(batch)
        if sum(len(next(iter(part.values()))) for part in held) >= jax.local_device_count():
            yield _joined(held)
            held = []
    if held:
        yield _joined(held)


def _joined(batches: list[Mapping[str, np.ndarray]]) -> dict[str, np.ndarray]:
    return {name: np.concatenate([batch[name] for batch in batches]) for name in batches[0]}


def map_rows(function: Callable[[Any], Any], rows: Any) -> Any:
    """Applies a function of one row to a batch, split over this host's devices by `split_rows`.

    The function may contain loops of data-dependent length; see `map_looping`.
    """
    return split_rows(lambda rows: map_looping(function, rows), rows)


def map_looping(function: Callable[[Any], Any], rows: Any) -> Any:
    """Applies a function of one row, which may have loops of data-dependent length, to a batch.

    A CPU is fully used by one row, so rows run one by one: under `vmap` every row would wait for
    the longest loop. On an accelerator rows run together under `vmap`.
    """
    if jax.default_backend() == "cpu":
        return lax.map(function, rows)
    return jax.vmap(function)(rows)


def map_looping_anywhere(function: Callable[[Any], Any], rows: Any) -> Any:
    """Does what `map_looping` does on the platform of the compilation, for `jax.export`.

    The function is traced for both, so tracing takes twice as long.
    """
    one_by_one = lambda rows: lax.map(function, rows)
    return lax.platform_dependent(rows, cpu=one_by_one, default=jax.vmap(function))
