"""Where batches and states lie."""

import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import export, lax

from ega_jax.training.mesh import data_mesh, map_looping_anywhere, map_rows, replicated, shard_batch


def test_mesh_takes_all_devices_or_those_given():
    assert data_mesh().shape == {"data": 4}
    assert data_mesh(jax.devices()[:2]).shape == {"data": 2}


SPLIT = """
import jax, numpy as np
from ega_jax.training import mesh
mesh._num_cores = lambda: 3
mesh.split_cpu()
mapped = jax.jit(lambda rows: mesh.map_rows(lambda row: row + 1, rows))(np.arange(6))
print(len(jax.devices()), mesh.data_mesh().size, len(mapped.sharding.device_set), mapped.sum())
"""


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("", "3 1 3 21"), ("--xla_force_host_platform_device_count=2", "2 2 2 21")],
)
def test_cores_map_rows_and_one_device_trains_on_all(flags, expected):
    own = {**os.environ, "XLA_FLAGS": flags}
    found = subprocess.run(
        [sys.executable, "-c", SPLIT], env=own, capture_output=True, text=True, check=True
    )
    assert found.stdout.split() == expected.split()


@pytest.mark.parametrize("devices", [1, 2, 4])
def test_each_device_holds_its_share_of_the_rows(devices):
    batch = {"ids": np.arange(8), "x": np.arange(24.0, dtype=np.float32).reshape(8, 3)}
    sharded = shard_batch(batch, data_mesh(jax.devices()[:devices]))
    rows = 8 // devices
    for name, value in batch.items():
        np.testing.assert_array_equal(sharded[name], value)
        for shard in sharded[name].addressable_shards:
            first = shard.index[0].start or 0
            np.testing.assert_array_equal(shard.data, value[first : first + rows])


def test_replicated_puts_everything_on_every_device():
    value = jax.device_put(np.arange(3), replicated(data_mesh()))
    assert [shard.data.shape for shard in value.addressable_shards] == [(3,)] * 4


def test_uneven_batch_is_refused():
    message = r"batch field 'x' has 6 rows, which 4 devices .* divisible by 4"
    with pytest.raises(ValueError, match=message):
        shard_batch({"x": np.zeros((6, 2))}, data_mesh())


def test_exported_rows_run_one_by_one_on_a_cpu_and_together_elsewhere():
    double = jax.jit(lambda rows: map_looping_anywhere(lambda row: 2 * row, rows))
    for platform, loops in (("cpu", True), ("cuda", False), ("tpu", False)):
        lowered = export.export(double, platforms=(platform,))(np.ones((3, 2)))
        assert ("stablehlo.while" in lowered.mlir_module()) == loops
    together = jax.vmap(lambda row: 2 * row)(np.ones((3, 2)))
    np.testing.assert_array_equal(double(np.ones((3, 2))), together)


@pytest.mark.parametrize("backend", ["cpu", "gpu"])
@pytest.mark.parametrize(("rows", "devices"), [(8, 4), (6, 4), (3, 3), (1, 1)])
def test_rows_are_mapped_by_every_device_up_to_one_a_row(rows, devices, backend, monkeypatch):
    """Each row loops as long as its data ask, with an array of the outside and a random key."""
    monkeypatch.setattr(jax, "default_backend", lambda: backend)

    @jax.jit
    def doubled(factor, counts, keys):
        def row(x):
            count, key = x
            grown = lax.fori_loop(0, count, lambda _, y: factor * y, jnp.ones(3))
            return grown + jax.random.randint(key, (), 0, 5)

        return map_rows(row, (counts, keys))

    counts = np.arange(rows, dtype=np.int32)
    keys = jax.random.split(jax.random.key(0), rows)
    found = doubled(np.float32(2), counts, keys)
    drawn = [jax.random.randint(key, (), 0, 5) for key in keys]
    expected = np.array([2.0**count + noise for count, noise in zip(counts, drawn, strict=True)])
    np.testing.assert_array_equal(found, np.repeat(expected[:, None], 3, axis=1))
    assert len(found.addressable_shards) == devices
