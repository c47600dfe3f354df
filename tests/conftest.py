"""Four fake CPU devices, one compilation cache, and strict shapes where no module allows others.

What is set in the environment also holds for the processes that tests start.
"""

import gc
import os
import tempfile
from importlib.metadata import version
from pathlib import Path

from packaging.version import Version

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault(
    "XLA_FLAGS",  # Tests compile more than they compute.
    "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0 "
    "--xla_llvm_disable_expensive_passes=true"
    # Where there are two code generators, the older one compiles faster.
    + (
        " --xla_cpu_use_fusion_emitters=false"
        if Version(version("jaxlib")) < Version("0.11")
        else ""
    ),
)
os.environ.setdefault("JAX_TRACEBACK_IN_LOCATIONS_LIMIT", "0")
os.environ.setdefault(
    "JAX_COMPILATION_CACHE_DIR",
    str(Path(tempfile.gettempdir()) / f"ega_jax-test-cache-{os.getuid()}"),
)
os.environ.setdefault("JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS", "0.5")

import jax
import pytest
from absl import flags

gc.set_threshold(100_000, 10, 10)  # Tracing makes many objects, and most stay.
jax.config.update("jax_numpy_rank_promotion", "raise")
flags.FLAGS.mark_as_parsed()
BROADCASTING = (  # Folders whose tests run models.
    "auction",
    "baselines",
    "docs",
    "evaluation",
    "experiments",
    "generation",
    "payment",
    "phases",
    "playground",
    "reward",
)
_MAPS = Path("/proc/self/maps")  # Linux: a process may map 65,530 regions,
_MANY = 25_000  # and every compiled function takes some; beyond, it dies.


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whole commands, which take longest, go first: no worker is to end on them alone."""
    items.sort(key=lambda item: "experiments" not in item.path.parts)


@pytest.fixture(autouse=True, scope="module")
def _broadcasting(request: pytest.FixtureRequest):
    """Lets the models' tests broadcast: models take any leading axes."""
    folder = request.path.relative_to(Path(__file__).parent).parts[0]
    with jax.numpy_rank_promotion("allow" if folder in BROADCASTING else "raise"):
        yield


@pytest.fixture(autouse=True, scope="module")
def _forget_what_is_compiled():
    """Lets a module's compiled functions go before there are too many."""
    yield
    if _MAPS.exists() and _MAPS.read_bytes().count(b"\n") > _MANY:
        jax.clear_caches()
        gc.collect()


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Config and workdir of a tiny run of pretrain and auction_align; tests must not change it.

    One worker trains it, the others wait for it and copy its workdir.
    """
    import tiny_auction  # Here, since only a few folders need it and it imports every phase.

    own = tmp_path_factory.mktemp("ad_log")
    with jax.numpy_rank_promotion("allow"):
        if "PYTEST_XDIST_WORKER" not in os.environ:
            return tiny_auction.aligned(own)
        return tiny_auction.aligned_once(tmp_path_factory.getbasetemp().parent / "ad_log", own)
