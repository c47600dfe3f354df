"""One finished run of the main job, shared by all modules."""

import jax
import pytest
import tiny_auction


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """An undisturbed run of both commands, for all modules: config, workdir."""
    with jax.numpy_rank_promotion("allow"):
        return tiny_auction.aligned(tmp_path_factory.mktemp("ad_log"))
