"""A small regression as a phase, with randomness, counts and a shuffled stream; and its death."""

import os
import signal

import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax

from ega_jax.training.loop import Phase, train
from ega_jax.training.mesh import data_mesh
from ega_jax.training.state import TrainState, make_train_step

ROWS, BATCH = 50, 8
SETTINGS = {"num_steps": 40, "checkpoint_every": 5, "log_every": 2}


def loss_fn(params, seen, batch, key):
    """Squared error under random noise; `seen` counts how often each row came."""
    noise = 0.01 * jax.random.normal(key, batch["x"].shape)
    hidden = jnp.tanh((batch["x"] + noise) @ params["inner"])
    error = hidden @ params["outer"] - batch["y"]
    return jnp.mean(error**2), ({"bias": jnp.mean(error)}, seen.at[batch["row"]].add(1))


def init_state(optimizer, width):
    random = np.random.default_rng(1)
    params = {
        "inner": jnp.asarray(0.5 * random.normal(size=(3, width)), jnp.float32),
        "outer": jnp.asarray(0.5 * random.normal(size=width), jnp.float32),
    }
    return TrainState.create(params, optimizer, jnp.zeros(ROWS, jnp.int32))


def elements():
    """The rows as the stream yields them, in order."""
    x = np.random.default_rng(0).normal(size=(ROWS, 3)).astype(np.float32)
    return [{"x": v, "y": np.sin(v.sum()), "row": np.int32(i)} for i, v in enumerate(x)]


def stream(rows, transform=lambda element: element):
    """Endless shuffled batches of the rows, each passed through `transform`."""
    source = grain.MapDataset.source(rows).seed(0).shuffle().repeat().map(transform)
    batches = source.batch(BATCH, drop_remainder=True)
    return batches.to_iter_dataset(grain.ReadOptions(num_threads=2, prefetch_buffer_size=2))


def toy_phase(batches=None, width=16, **settings):
    optimizer = optax.sgd(0.1, momentum=0.9)
    return Phase(
        name="toy",
        init=lambda: init_state(optimizer, width),
        step=make_train_step(loss_fn, optimizer, jax.random.key(1)),
        batches=stream(elements()) if batches is None else batches,
        **(SETTINGS | settings),
    )


def signal_at(step, signum):
    """An evaluation that sends its own process a signal when it sees the given step."""

    def evaluate(state):
        if int(state.step) == step:
            os.kill(os.getpid(), signum)
        return {"step": float(state.step)}

    return {"evaluate": evaluate, "evaluate_every": 1}


def train_and_die(workdir, where, when):
    """Trains, and kills its process: at a step, in the middle of a save, or while reading."""
    settings, batches, count = {}, None, iter(range(1, 10_000))

    def die_at_last(result):
        if next(count) == when:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    if where == "step":
        settings = signal_at(when, signal.SIGKILL)
    if where == "save":
        save = grain.checkpoint.CheckpointHandler.save
        grain.checkpoint.CheckpointHandler.save = lambda *a, **k: die_at_last(save(*a, **k))
    if where == "read":
        batches = stream(elements(), die_at_last)
    train(toy_phase(batches, **settings), workdir=workdir, config={}, mesh=data_mesh())
