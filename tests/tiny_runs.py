"""Datasets and a config so small that every phase of pre-training takes seconds; and its death."""

import importlib
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from flax.traverse_util import flatten_dict

from ega_jax.phases.pretraining import Pretraining
from ega_jax.training import loop
from ega_jax.training.mesh import data_mesh
from experiments.common import command
from experiments.configs import market

NUM_POIS, NUM_SLOTS, STEPS = 16, 3, 12  # POI p owns creatives 2p and 2p + 1.
CONTEXT_WIDTH = 7  # As in the market's logs, for which the docs write requests.
TINY = {
    "data": {"history_length": 4},
    "tokenizer": {
        "num_layers": 2,
        "num_codes": 4,
        "num_iterations": 3,
        "hidden": (8,),
        "latent": 4,
        "num_steps": STEPS,
        "batch_size": 8,
        "checkpoint_every": 4,
    },
    "generator": {
        "width": 8,
        "num_heads": 2,
        "hidden": 8,
        "encoder_blocks": 1,
        "decoder_blocks": 1,
    },
    "optimizer": {"warmup_steps": 2},
    "training": {
        "batch_size": 8,
        "num_steps": STEPS,
        "checkpoint_every": 4,
        "log_every": 1,
        "evaluate_every": 6,
    },
    "evaluation": {"batch_size": 8, "num_beams": 10, "validation_rows": 8},
}
REWARD = {  # A reward model that takes seconds on a market of 400 sessions.
    "num_steps": 6,
    "warmup_steps": 1,
    "batch_size": 8,
    "width": 8,
    "num_heads": 2,
    "hidden": 8,
}


class Flag:
    """Stands for a parsed flag."""

    def __init__(self, value):
        self.value = value


def tiny_config(folder, kind="rqvae", **groups):
    """The settings of a run on a folder, as commands get it; `groups` change its fields."""
    own = {"data": {"path": str(folder)}, "tokenizer": {"kind": kind}}
    settings = market.settings("tiny")
    # At once: some values fit together only when all are set.
    changes = {}
    for nested in (TINY, own, groups):
        changes |= flatten_dict(nested, sep=".")
    return settings.changed(changes)


def _vectors(rows, seed):
    values = np.random.default_rng(seed).normal(size=(rows, 4)).astype(np.float32)
    return pa.FixedSizeListArray.from_arrays(values.ravel(), 4)


def write_ad_log(folder, num_sessions=60):
    """An ad log of random sessions."""
    rng = np.random.default_rng(0)
    rows = [_session(rng, number) for number in range(num_sessions)]
    ids = np.arange(NUM_POIS, dtype=np.int32)
    (folder / "sessions").mkdir(parents=True)
    pq.write_table(
        pa.table({"poi_id": ids, "embedding": _vectors(NUM_POIS, 1)}), folder / "pois.parquet"
    )
    creatives = np.arange(2 * NUM_POIS, dtype=np.int32)
    columns = {
        "creative_id": creatives,
        "poi_id": creatives // 2,
        "embedding": _vectors(2 * NUM_POIS, 2),
    }
    pq.write_table(pa.table(columns), folder / "creatives.parquet")
    sessions = {name: [row[name] for row in rows] for name in rows[0]}
    pq.write_table(pa.table(sessions), folder / "sessions" / "part-0.parquet")
    return folder


def _session(rng, number):
    items = rng.permutation(NUM_POIS).tolist()
    history = rng.integers(0, NUM_POIS, rng.integers(1, 6)).tolist()
    shown = [items[0], *items[8 : 7 + NUM_SLOTS]]
    click = (rng.random(NUM_SLOTS) < 0.5).tolist()
    some_creative = lambda pois: [2 * poi + int(rng.integers(2)) for poi in pois]
    return {
        "session_id": number,
        "user_id": number % 7,
        "timestamp": 1000 + number,
        "history_poi": history,
        "history_creative": some_creative(history),
        "ad_poi": items[:8],
        "ad_bid": rng.random(8).tolist(),
        "organic_poi": items[8:],
        "shown_poi": shown,
        "shown_creative": some_creative(shown),
        "shown_is_ad": [True, *[False] * (NUM_SLOTS - 1)],
        "click_poi": click,
        "click_image": click,
        "convert": [False] * NUM_SLOTS,
        "context": np.sin(number + np.arange(CONTEXT_WIDTH)).tolist(),
    }


def write_sequences(folder, num_users=24):
    """Public sequences: each user walks through the items from a start of their own."""
    folder.mkdir(parents=True)
    ids = np.arange(NUM_POIS, dtype=np.int32)
    columns = {"item_id": ids, "embedding": _vectors(NUM_POIS, 3)}
    pq.write_table(pa.table(columns), folder / "items.parquet")
    walks = [
        [(user + step) % NUM_POIS for step in range(4 + user % 5)] for user in range(num_users)
    ]
    columns = {"user_id": np.arange(num_users, dtype=np.int32), "items": walks}
    pq.write_table(pa.table(columns), folder / "sequences.parquet")
    return folder


def spoil(path, row):
    """Puts NaN into one embedding of a file."""
    table = pq.read_table(path)
    values = np.stack(table["embedding"].to_numpy(zero_copy_only=False)).astype(np.float32)
    values[row] = np.nan
    spoiled = pa.FixedSizeListArray.from_arrays(values.ravel(), values.shape[1])
    place = table.column_names.index("embedding")
    pq.write_table(table.set_column(place, "embedding", spoiled), path)


def train_and_die(config, workdir, phase, step):
    """Pre-trains, and kills its process when a phase has taken a step."""
    advance = loop._Run._advance

    def advance_and_die(run):
        advance(run)
        if (run._phase.name, run.step) == (phase, step):
            os.kill(os.getpid(), signal.SIGKILL)

    loop._Run._advance = advance_and_die
    Pretraining(config, Path(workdir), data_mesh()).train_generator()


def run_command(module, arguments, output):
    """Runs a command as its own process would, with everything it prints in a file."""
    printed = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(printed, stream)
    sys.argv = [module, *arguments]
    module = importlib.import_module(module)
    command.run(module.main, module.__doc__)


def run_apart(module, arguments, folder):
    """Runs a command in a process of its own: its exit code and all that it prints."""
    output = folder / "printed.txt"
    arguments = [str(argument) for argument in arguments]
    process = forkserver().Process(target=run_command, args=(module, arguments, str(output)))
    process.start()
    process.join()
    return process.exitcode, output.read_text()


def forkserver():
    """Starts processes that have imported the package already."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["experiments.common.runs"])
    return context
