"""Two processes train what one with as many devices does; on a CPU, as a scheduler starts them."""

import os
import socket
import subprocess
import sys

import numpy as np
import pytest
import tiny_runs

from ega_jax.training.checkpoints import check_workdir
from ega_jax.training.metrics import read_metrics


def start(workdir, devices, several, **environment):
    flags = f"--xla_force_host_platform_device_count={devices}"
    command = [sys.executable, "-m", "experiments.pretrain", f"--workdir={workdir}", *several]
    environment = os.environ | {"XLA_FLAGS": flags} | environment
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


@pytest.mark.slow
def test_two_processes_train_as_two_devices_do(tmp_path):
    config = tiny_runs.tiny_config(tiny_runs.write_ad_log(tmp_path / "log"))
    for name in ("one", "two"):
        check_workdir(tmp_path / name, config.to_dict())
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    shared = {
        "SLURM_JOB_ID": "1",
        "SLURM_STEP_NODELIST": "localhost",
        "SLURM_NTASKS": "2",
        "SLURM_STEP_NUM_TASKS": "2",
        "JAX_COORDINATOR_ADDRESS": address,
    }
    ranks = [
        {"SLURM_PROCID": str(number), "SLURM_LOCALID": str(number)} | shared for number in range(2)
    ]
    processes = [start(tmp_path / "two", 1, ["--several_hosts"], **rank) for rank in ranks]
    processes.append(start(tmp_path / "one", 2, []))
    assert [process.wait(timeout=300) for process in processes] == [0, 0, 0]
    losses = [
        [record["loss"] for record in read_metrics(tmp_path / name / "metrics" / "generator.jsonl")]
        for name in ("two", "one")
    ]
    np.testing.assert_allclose(*losses, rtol=1e-4)
