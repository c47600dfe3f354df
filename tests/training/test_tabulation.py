"""A table on a toy: stopped at any batch and continued, it is the table of a run left alone."""

import os

import chex
import jax.numpy as jnp
import numpy as np
import pytest

from ega_jax.errors import UserError
from ega_jax.training.interrupt import SIGNALS, Interrupted
from ega_jax.training.tabulation import SAVES, tabulated

NUM_BATCHES, SIZE = 3 * SAVES + 2, 2


class Toy:
    """Rows that tell their batch, and which batches were asked for."""

    def __init__(self, signum=None, at=None):
        self.asked, self._signum, self._at = [], signum, at

    def __call__(self, number):
        if number == self._at:
            os.kill(os.getpid(), self._signum)
        self.asked.append(number)
        row = SIZE * number + jnp.arange(SIZE)
        return {
            "row": row,
            "wide": jnp.tile(row[:, None] / 3, 3),
            "none": jnp.zeros((SIZE, 0)),
            "inner": {"exact": np.arange(SIZE) + number / 3},
        }


def made(path, toy):
    return tabulated(path, NUM_BATCHES, toy, SIZE)


def test_rows_stand_in_order_and_are_made_once(tmp_path):
    toy = Toy()
    table = made(tmp_path / "table", toy)
    np.testing.assert_array_equal(table["row"], np.arange(NUM_BATCHES * SIZE))
    assert table["wide"].shape == (NUM_BATCHES * SIZE, 3)
    assert table["none"].shape == (NUM_BATCHES * SIZE, 0)
    exact = np.add.outer(np.arange(NUM_BATCHES) / 3, np.arange(SIZE)).reshape(-1)
    np.testing.assert_array_equal(table["inner"]["exact"], exact, strict=True)
    assert toy.asked == list(range(NUM_BATCHES))
    again = Toy()
    chex.assert_trees_all_equal(made(tmp_path / "table", again), table)
    assert not again.asked


@pytest.mark.parametrize("signum", SIGNALS)
def test_stopped_at_any_batch_it_goes_on_from_there(tmp_path, signum):
    asked = []
    for at in (0, 5, NUM_BATCHES - 1):
        toy = Toy(signum, at)
        with pytest.raises(Interrupted, match=f"after {at + 1} of {NUM_BATCHES} batches"):
            made(tmp_path / "table", toy)
        asked += toy.asked
    assert asked == list(range(NUM_BATCHES))
    chex.assert_trees_all_equal(
        made(tmp_path / "table", Toy()), made(tmp_path / "undisturbed", Toy())
    )


def test_a_table_of_other_batches_is_refused(tmp_path):
    made(tmp_path / "table", Toy())
    with pytest.raises(UserError, match=f"has batches {NUM_BATCHES}, not {NUM_BATCHES - 1}"):
        tabulated(tmp_path / "table", NUM_BATCHES - 1, Toy(), SIZE)
    with pytest.raises(UserError, match=f"has batch_size {SIZE}, not {SIZE + 1}"):
        tabulated(tmp_path / "table", NUM_BATCHES, Toy(), SIZE + 1)
    with pytest.raises(UserError, match="has num_rows None, not 7"):
        tabulated(tmp_path / "table", NUM_BATCHES, Toy(), SIZE, made_of={"num_rows": 7})


def test_what_fails_loses_a_tenth_at_most(tmp_path):
    def failing(number):
        if number == NUM_BATCHES - 1:
            raise RuntimeError("killed")
        return Toy()(number)

    with pytest.raises(RuntimeError, match="killed"):
        made(tmp_path / "table", failing)
    toy = Toy()
    table = made(tmp_path / "table", toy)
    np.testing.assert_array_equal(table["row"], np.arange(NUM_BATCHES * SIZE))
    assert len(toy.asked) <= -(-NUM_BATCHES // SAVES)
