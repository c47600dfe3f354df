"""The loop on a toy phase: resuming, stopping, failing, many devices."""

import json
import multiprocessing
import signal

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import toy_phase
from toy_phase import elements, signal_at, stream

from ega_jax.training.checkpoints import CheckpointMismatchError, PhaseCheckpoints, restore_tree
from ega_jax.training.guard import LAG
from ega_jax.training.loop import Interrupted, NonFiniteLossError, Phase, train
from ega_jax.training.mesh import data_mesh
from ega_jax.training.metrics import read_metrics
from ega_jax.training.state import TrainState

KILLS = [("step", 3), ("step", 11), ("save", 1), ("read", 64), ("step", 24), ("step", 37)]


def run(workdir, phase=None, mesh=None, **settings):
    phase = phase or toy_phase.toy_phase(**settings)
    return train(phase, workdir=workdir, config={"seed": 1}, mesh=mesh or data_mesh())


def metrics_of(workdir):
    return read_metrics(workdir / "metrics" / "toy.jsonl")


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """A workdir of a run that nothing disturbed, and its final state on the host."""
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, jax.device_get(run(workdir))


def test_killed_and_resumed_is_as_never_stopped(finished, tmp_path):
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["ega_jax.training.loop"])
    for where, when in KILLS:
        process = context.Process(target=toy_phase.train_and_die, args=(tmp_path, where, when))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL, (where, when)
    chex.assert_trees_all_equal(jax.device_get(run(tmp_path)), finished[1])


def test_learns_and_sees_every_row_equally(finished):
    workdir, state = finished
    losses = [line["loss"] for line in metrics_of(workdir)]
    assert losses[-1] < 0.5 * losses[0]
    assert int(state.step) == 40
    assert state.variables.sum() == 40 * toy_phase.BATCH
    assert np.ptp(state.variables) <= 1  # an epoch is a permutation.


def test_finished_phase_is_restored_and_not_touched(finished):
    workdir, state = finished
    before = (workdir / "metrics" / "toy.jsonl").read_bytes()

    def never(*_):
        raise AssertionError("a finished phase takes no step")

    again = toy_phase.toy_phase(stream(elements(), never))
    restored = run(workdir, again)
    assert len(restored.step.sharding.device_set) == 4
    chex.assert_trees_all_equal(jax.device_get(restored), state)
    assert (workdir / "metrics" / "toy.jsonl").read_bytes() == before


def test_last_two_checkpoints_stay(finished):
    folder = finished[0] / "checkpoints" / "toy"
    assert sorted(path.name for path in folder.iterdir()) == ["35", "40"]


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGINT])
def test_signal_saves_and_says_how_to_continue(finished, tmp_path, signum):
    handler = signal.getsignal(signum)
    with pytest.raises(Interrupted, match=r"toy stopped after step 13 of 40.*continue"):
        run(tmp_path, **signal_at(13, signum))
    assert signal.getsignal(signum) == handler
    assert PhaseCheckpoints(tmp_path / "checkpoints" / "toy").latest_step() == 13
    chex.assert_trees_all_equal(jax.device_get(run(tmp_path)), finished[1])


def test_signal_at_the_last_step_is_not_swallowed(tmp_path):
    settings = {"num_steps": 4, "checkpoint_every": 0}  # saved at the end all the same.
    with pytest.raises(Interrupted, match="step 4 of 4"):
        run(tmp_path, **settings, **signal_at(4, signal.SIGTERM))
    assert int(run(tmp_path, **settings, evaluate=None).step) == 4


def test_metrics_hold_each_step_once_after_resuming(tmp_path):
    def fail_at_12(state):
        if int(state.step) == 12:
            raise RuntimeError("evaluation broke")
        return {"recall": 0.5}

    with pytest.raises(RuntimeError, match="evaluation broke"):
        run(tmp_path, evaluate=fail_at_12, evaluate_every=3)
    assert [line["step"] for line in metrics_of(tmp_path)] == [2, 3, 4, 6, 8, 9, 10]
    with (tmp_path / "metrics" / "toy.jsonl").open("a") as lines:
        lines.write('{"step": 11}\n{"step": 12, "lo')  # beyond the checkpoint of step 10.
    run(tmp_path, num_steps=16, evaluate=lambda state: {"recall": 0.5}, evaluate_every=3)
    lines = metrics_of(tmp_path)
    assert [line["step"] for line in lines] == [2, 3, 4, 6, 8, 9, 10, 12, 14, 15, 16]
    assert [line["step"] for line in lines if "eval/recall" in line] == [3, 6, 9, 12, 15, 16]
    elapsed = [line["elapsed_seconds"] for line in lines]
    assert elapsed == sorted(elapsed)


def test_metrics_name_losses_norms_and_speed(finished):
    workdir, _ = finished
    for line in metrics_of(workdir):
        assert line.keys() == {
            *("step", "loss", "bias", "grad_norm", "param_norm", "update_norm"),
            *("samples_per_second", "data_wait_share", "elapsed_seconds"),
        }
        assert line["samples_per_second"] > 0
        assert 0 <= line["data_wait_share"] <= 1
    assert list((workdir / "tensorboard" / "toy").iterdir())


def test_non_finite_loss_saves_the_state_before_it_and_the_batch(tmp_path):
    rows = elements()
    rows[3]["y"] = np.float32(np.nan)
    first = first_bad_step(rows)
    assert 1 < first < 2 * LAG
    with pytest.raises(NonFiniteLossError) as caught:
        run(tmp_path, toy_phase.toy_phase(stream(rows), checkpoint_every=100))
    folder = tmp_path / "failures" / "toy" / str(first)
    assert f"not finite at step {first};" in str(caught.value)
    assert str(folder) in str(caught.value)
    batch = np.load(folder / "batch-0.npz")
    assert np.isnan(batch["y"]).any()
    before = run(tmp_path / "clean", num_steps=first - 1, checkpoint_every=100)
    chex.assert_trees_all_equal(restore_tree(folder / "state", before), before)


def first_bad_step(rows):
    return next(i for i, b in enumerate(stream(rows), start=1) if np.isnan(b["y"]).any())


def test_four_devices_give_the_losses_of_one_and_take_over_its_checkpoint(finished, tmp_path):
    state = run(tmp_path, num_steps=20, mesh=data_mesh(jax.devices()[:1]))
    assert len(state.step.sharding.device_set) == 1
    state = run(tmp_path, mesh=data_mesh())
    assert len(state.step.sharding.device_set) == len(jax.devices()) == 4
    alone, shared = metrics_of(tmp_path), metrics_of(finished[0])
    assert [line["step"] for line in alone] == [line["step"] for line in shared]
    for name in ("loss", "bias", "grad_norm"):
        np.testing.assert_allclose(
            [line[name] for line in alone], [line[name] for line in shared], rtol=1e-3, atol=1e-5
        )


def test_checkpoint_of_another_shape_is_named(finished):
    message = r"params/inner: found float32\[3, 16\], expected float32\[3, 12\]"
    with pytest.raises(CheckpointMismatchError, match=message):
        run(finished[0], toy_phase.toy_phase(width=12))


def test_step_is_traced_once_and_init_keeps_what_it_was_given(tmp_path):
    given = jnp.ones(3)  # weights of an earlier phase: donation must not consume them.
    optimizer = optax.sgd(0.1)
    traces = []

    def step(state, batch):
        traces.append(batch["x"].shape)
        return state.replace(step=state.step + 1), {"loss": jnp.mean(batch["x"] @ state.params)}

    phase = Phase(
        name="toy",
        init=lambda: TrainState.create(given, optimizer),
        step=step,
        batches=stream(elements()),
        num_steps=3 * LAG,
    )
    run(tmp_path, phase)
    assert traces == [(toy_phase.BATCH, 3)]
    np.testing.assert_array_equal(given, np.ones(3))


def test_config_is_saved_with_the_checkpoint(finished):
    path = finished[0] / "checkpoints" / "toy" / "40" / "metadata" / "metadata"
    assert json.loads(path.read_text())["metadata"]["config"] == {"seed": 1}
