"""Where batches and states lie."""

import jax
import numpy as np
import pytest

from ega_jax.training.mesh import data_mesh, replicated, shard_batch


def test_mesh_takes_all_devices_or_those_given():
    assert data_mesh().shape == {"data": 4}
    assert data_mesh(jax.devices()[:2]).shape == {"data": 2}


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
