"""Keeping compiled functions on disk."""

import hashlib
import platform
from pathlib import Path

import jax
import platformdirs

MOST_BYTES = 2 << 30  # Of one kind of processor; the functions unused for longest go first.
LEAST_SECONDS = 0.3  # A function that compiles faster is not worth a file.


def keep_compiled() -> None:
    """Keeps compiled functions on disk, so that later processes on this machine start fast.

    They are in the user's cache folder, apart for each kind of processor: code that was compiled
    for one may not run on another. If JAX already has a folder, as by the environment variable
    `JAX_COMPILATION_CACHE_DIR`, or the folder cannot be made, nothing changes.
    """
    if jax.config.values["jax_compilation_cache_dir"]:
        return
    folder = platformdirs.user_cache_path("ega_jax") / "compiled" / _processor()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return
    jax.config.update("jax_compilation_cache_dir", str(folder))
    jax.config.update("jax_compilation_cache_max_size", MOST_BYTES)
    jax.config.update("jax_persistent_cache_min_compile_time_secs", LEAST_SECONDS)


def _processor() -> str:
    """Stands for the instructions that the processor knows."""
    known = [platform.system(), platform.machine(), platform.processor()]
    cpu = Path("/proc/cpuinfo")  # Linux; the names are those of x86 and of ARM.
    lines = cpu.read_text().splitlines() if cpu.exists() else []
    known += [line for line in lines if line.startswith(("flags", "Features"))][:1]
    return hashlib.sha256("\n".join(known).encode()).hexdigest()[:16]
