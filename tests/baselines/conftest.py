"""The models broadcast over any leading axes, so their tests allow rank promotion."""

import jax
import pytest


@pytest.fixture(scope="module", autouse=True)
def _broadcasting():
    with jax.numpy_rank_promotion("allow"):
        yield
