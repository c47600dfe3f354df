"""A second half of the main job that takes seconds: its config, its workdir, and its death."""

import os
import shutil
import signal
from pathlib import Path

import pytest
from absl.testing import flagsaver
from tiny_runs import tiny_config, write_ad_log

from ega_jax.baselines.settings import Settings
from ega_jax.evaluation.report import write_results
from ega_jax.phases.auction import AuctionTraining
from ega_jax.phases.pretraining import Pretraining
from ega_jax.setting import WORKDIR
from ega_jax.systems import PAPER, training_of
from ega_jax.training import loop
from ega_jax.training.checkpoints import check_workdir, read_config
from ega_jax.training.files import locked
from ega_jax.training.mesh import data_mesh
from experiments import auction_align
from experiments.common import workdirs

STEPS = 6
PHASES = {"reward": "reward", "alignment": "systems/ega", "payment_rate": "systems/ega"}
PHASES["payment_threshold"] = "systems/ega"
_SCHEDULE = {"num_steps": STEPS, "checkpoint_every": 2, "log_every": 1}
_STAGE = {"num_steps": 2, "checkpoint_every": 2, "log_every": 1, "evaluate_every": 0}
_STAGE |= {"batch_size": 4, "warmup_steps": 1}
_FUNNEL = {"least_recalled": 3, "num_preranked": 2, "num_ranked": 2}
_SIZES = {"width": 8, "num_heads": 2, "hidden": 8}
TINY = {
    "optimizer": {"warmup_steps": 0},
    "training": {"num_steps": 2, "evaluate_every": 0},
    "reward": _SCHEDULE
    | {"width": 8, "num_heads": 2, "hidden": 8, "batch_size": 8, "warmup_steps": 1}
    | {"evaluate_every": 0},
    "allocation": {"num_beams": 4, "alpha": PAPER["allocation.alpha"]},
    "alignment": _SCHEDULE | {"batch_size": 4, "learning_rate": 1e-2},
    "payment": _SCHEDULE
    | {"hidden": (8, 4), "num_sessions": 8, "num_reports": 3, "tabulated_at_once": 4}
    | {"batch_size": 4},
    "auction": {"num_sessions": 2, "num_served": 4, "batch_size": 2, "num_losing": 1},
    "cascade": {"funnel": _FUNNEL, "tiger": _STAGE, "cross_dqn": _STAGE | _SIZES | {"screen": 3}}
    | dict.fromkeys(("hstu", "peri_cr", "cga"), _STAGE | _SIZES)
    | {"two_tower": _STAGE | {"width": 8, "hidden": 8}},
}


def pretrained(root: Path) -> tuple[Settings, Path]:
    """A workdir whose generator is trained, and its settings."""
    config = tiny_config(write_ad_log(root / "data"), kind="kmeans", **TINY)
    Pretraining(config, root / "run", data_mesh()).train_generator()
    return config, root / "run"


def align(config, workdir, system="ega"):
    """Runs `experiments.auction_align` as its flags would."""

    def open_workdir(kind):
        check_workdir(workdir, config.to_dict(), config.free(WORKDIR))
        return config, workdir

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workdirs, "open_workdir", open_workdir)
        with flagsaver.flagsaver(system=system):
            auction_align.main()


def aligned(root: Path) -> tuple[Settings, Path]:
    """A workdir whose whole auction is trained and measured, and its settings."""
    config, workdir = pretrained(root)
    write_results(workdir, {"test": {"kept": 1}})
    align(config, workdir)
    return config, workdir


def aligned_once(shared: Path, own: Path) -> tuple[Settings, Path]:
    """What `aligned` makes, in a folder that processes share; the workdir is a copy in `own`."""
    shared.mkdir(exist_ok=True)
    with locked(shared):
        if not (shared / "finished").exists():
            aligned(shared)
            (shared / "finished").touch()
    workdir = shutil.copytree(shared / "run", own / "run")
    return Settings.from_dict(read_config(workdir)), workdir


def copied(workdir: Path, to: Path) -> Path:
    """Another workdir with the same tokens and generator, and nothing else."""
    for name in ("tokenizers", "checkpoints/generator"):
        shutil.copytree(workdir / name, to / name)
    return to


def training(config, workdir, mesh=None) -> AuctionTraining:
    """The second half in the folder of the system `ega`."""
    workdir = Path(workdir)
    first = Pretraining(config, workdir, mesh or data_mesh())
    return training_of(first, workdir / "systems" / "ega")


def train_and_die(config, workdir, phase, step):
    """Trains all phases, and kills its process when one of them has taken a step."""
    advance = loop._Run._advance

    def advance_and_die(run):
        advance(run)
        if (run._phase.name, run.step) == (phase, step):
            os.kill(os.getpid(), signal.SIGKILL)

    loop._Run._advance = advance_and_die
    assert training(config, workdir).networks
