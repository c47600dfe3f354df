"""Compiled functions are kept on disk, apart for each kind of processor."""

import os
import subprocess
import sys

import pytest

COMPILE = """
import jax
from ega_jax.training import compilation

compilation.LEAST_SECONDS = 0.0
counts = []
jax.monitoring.register_event_listener(
    lambda event, **_: counts.append(event) if event.endswith("cache_hits") else None
)
compilation.keep_compiled()
assert jax.jit(lambda x: x * 2 + 1)(3.0) == 7.0
print(len(counts), jax.config.values["jax_compilation_cache_dir"])
"""


def hits(**environment):
    """Compiles a function in a process of its own: what it found on disk, and the folder."""
    own = {name: x for name, x in os.environ.items() if not name.startswith("JAX_COMPILATION")}
    process = subprocess.run(
        [sys.executable, "-c", COMPILE],
        env=own | environment,
        capture_output=True,
        text=True,
        check=True,
    )
    count, folder = process.stdout.split()
    return int(count), folder


@pytest.mark.skipif(sys.platform != "linux", reason="the cache folder is set by a variable")
def test_a_second_process_finds_what_the_first_has_compiled(tmp_path):
    first, folder = hits(XDG_CACHE_HOME=str(tmp_path))
    assert first == 0
    assert folder.startswith(str(tmp_path / "ega_jax" / "compiled"))
    second, again = hits(XDG_CACHE_HOME=str(tmp_path))
    assert second > 0
    assert again == folder


def test_the_users_own_folder_is_kept(tmp_path):
    own = str(tmp_path / "own")
    assert hits(JAX_COMPILATION_CACHE_DIR=own)[1] == own


def test_without_a_folder_nothing_is_kept(tmp_path):
    (tmp_path / "file").write_text("")
    assert hits(XDG_CACHE_HOME=str(tmp_path / "file")) == (0, "None")
