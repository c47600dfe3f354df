"""What a measurement ran on: device, driver, versions, and the device's peak FLOP/s."""

import os
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import jax

PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "libtpu")
# Start of `device_kind` -> dense bfloat16 TFLOP/s of a device by its maker; the first match holds.
# A T4 has no bfloat16: its figure is float16. JAX sees half a chip of a TPU v2 or v3 as a device.
PEAK_TFLOPS = {
    "NVIDIA H100 PCIe": 756.0,
    "NVIDIA H100 NVL": 835.0,
    "NVIDIA H100": 989.0,
    "NVIDIA H200": 989.0,
    "NVIDIA A100": 312.0,
    "NVIDIA L40S": 362.0,
    "NVIDIA L40": 181.0,
    "NVIDIA L4": 121.0,
    "Tesla T4": 65.0,
    "TPU v2": 23.0,
    "TPU v3": 61.5,
    "TPU v4 lite": 137.0,
    "TPU v4": 275.0,
    "TPU v5 lite": 197.0,
    "TPU v5e": 197.0,
    "TPU v5": 459.0,
    "TPU v6": 918.0,
}


def peak_flops(device_kind: str) -> float | None:
    """Returns a device's peak FLOP/s in bfloat16, `None` if it is unknown or a slice of a GPU."""
    known = [peak for start, peak in PEAK_TFLOPS.items() if device_kind.startswith(start)]
    return 1e12 * known[0] if known and "MIG" not in device_kind else None


def description() -> dict[str, Any]:
    """Describes device, driver, host and versions."""
    device = jax.devices()[0]
    memory = (device.memory_stats() or {}).get("bytes_limit")
    return {
        "device": device.device_kind,
        "devices": jax.device_count(),
        "platform": device.platform,
        "runtime": device.client.platform_version.replace("\n", " "),
        "driver": driver(),
        "device_gb": memory and memory / 1e9,
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "versions": versions(),
    }


def driver() -> str | None:
    """Returns the NVIDIA driver's version, `None` if `nvidia-smi` does not tell it."""
    query = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        result = subprocess.run(query, capture_output=True, text=True, check=True, timeout=30)
    except (OSError, subprocess.SubprocessError):
        return None
    return result.stdout.partition("\n")[0] or None


def versions() -> dict[str, str]:
    """Returns the versions of the packages that are installed."""
    found = {}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
