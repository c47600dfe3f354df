"""The bookkeeping of the pre-training run; the run itself is tested with its command."""

import numpy as np

from ega_jax.phases.pretraining import Batches, owned_creatives


def test_owned_creatives():
    owned = owned_creatives(np.array([2, 0, 2, 3, 2], np.int32), 5)
    expected = [[1, -1, -1], [-1, -1, -1], [0, 2, 4], [3, -1, -1], [-1, -1, -1]]
    np.testing.assert_array_equal(owned, expected)
    assert owned.dtype == np.int32


def test_no_creatives_at_all():
    assert owned_creatives(np.zeros(0, np.int32), 4).shape == (4, 0)


def test_batches_start_anew_each_time():
    batches = Batches(range(5), 3)
    assert list(batches) == list(batches) == [0, 1, 2]
