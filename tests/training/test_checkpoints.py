"""What is saved comes back, what does not fit is named, what is half-written is ignored."""

import json

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optax
import orbax.checkpoint as ocp
import pytest
import toy_phase

from ega_jax.training import checkpoints
from ega_jax.training.checkpoints import (
    CheckpointMismatchError,
    ConfigMismatchError,
    PhaseCheckpoints,
    check_workdir,
    read_config,
    read_metadata,
    read_tree,
    restore_tree,
    save_tree,
)


def tree():
    params = {"kernel": jnp.arange(6.0).reshape(2, 3), "codes": np.arange(3, dtype=np.int8)}
    half = jnp.arange(4, dtype=jnp.bfloat16)
    return {"params": params, "opt": optax.adam(0.1).init(params), "half": half, "none": ()}


def abstract(value):
    return jax.eval_shape(lambda: jax.tree.map(jnp.asarray, value))


def test_tree_and_metadata_come_back(tmp_path):
    save_tree(tmp_path / "tree", tree(), {"layers": 3, "mean": [0.5, 1.0]})
    restored = restore_tree(tmp_path / "tree", abstract(tree()))
    assert jax.tree.structure(restored) == jax.tree.structure(tree())
    jax.tree.map(np.testing.assert_array_equal, restored, tree())
    assert restored["half"].dtype == ml_dtypes.bfloat16
    assert restored["params"]["codes"].dtype == np.int8
    assert read_metadata(tmp_path / "tree") == {"layers": 3, "mean": [0.5, 1.0]}


def test_saving_again_replaces(tmp_path):
    save_tree(tmp_path / "tree", {"a": jnp.zeros(2)}, {"version": 1})
    save_tree(tmp_path / "tree", {"a": jnp.ones(2)}, {"version": 2})
    np.testing.assert_array_equal(restore_tree(tmp_path / "tree", {"a": jnp.zeros(2)})["a"], 1.0)
    assert read_metadata(tmp_path / "tree") == {"version": 2}


def test_a_save_that_fails_loses_nothing(tmp_path, monkeypatch):
    def fails(_, path, *args, **kwargs):
        (path / "tree").mkdir(parents=True)
        raise OSError("disk full")

    save_tree(tmp_path / "tree", {"a": jnp.zeros(2)}, {"version": 1})
    with monkeypatch.context() as patched:
        patched.setattr(ocp.Checkpointer, "save", fails)
        with pytest.raises(OSError, match="disk full"):
            save_tree(tmp_path / "tree", {"a": jnp.ones(2)}, {"version": 2})
    assert read_metadata(tmp_path / "tree") == {"version": 1}
    save_tree(tmp_path / "tree", {"a": jnp.ones(2)}, {"version": 2})
    np.testing.assert_array_equal(restore_tree(tmp_path / "tree", {"a": jnp.zeros(2)})["a"], 1.0)
    assert [path.name for path in tmp_path.iterdir()] == ["tree"]


def test_what_no_place_is_asked_for_goes_where_it_is_used(tmp_path):
    save_tree(tmp_path / "tree", {"a": jnp.ones(2)}, {})
    last = jax.devices()[-1]
    restored = restore_tree(tmp_path / "tree", abstract({"a": jnp.ones(2)}))
    assert (restored["a"] + jax.device_put(jnp.ones(2), last)).devices() == {last}


@pytest.mark.parametrize("is_placed", [False, True])
def test_what_holds_no_element_comes_back_in_its_shape(tmp_path, is_placed):
    saved = {"a": jnp.ones(2), "none": np.zeros((3, 0), np.int32)}
    save_tree(tmp_path / "tree", saved, {})
    target = {"a": jnp.zeros(2), "none": jnp.zeros((3, 0), jnp.int32)}
    restored = restore_tree(tmp_path / "tree", target if is_placed else abstract(target))
    for tree in (restored, read_tree(tmp_path / "tree")):
        np.testing.assert_array_equal(tree["a"], 1.0)
        assert (tree["none"].shape, tree["none"].dtype) == ((3, 0), np.int32)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ({"a": jnp.zeros(4), "b": jnp.zeros(1)}, r"a: found float32\[3\], expected float32\[4\]"),
        ({"a": jnp.zeros(3, int), "b": jnp.zeros(1)}, r"a: found float32\[3\], expected int32"),
        ({"a": jnp.zeros(3)}, r"b: found float32\[1\], expected nothing"),
        (
            {"a": jnp.zeros(3), "b": {"c": jnp.zeros(1)}},
            r"b: found float32\[1\], expected nothing\n  b/c: found nothing, expected float32\[1\]",
        ),
    ],
)
def test_mismatch_names_field_found_and_expected(tmp_path, target, message):
    save_tree(tmp_path / "tree", {"a": jnp.zeros(3), "b": jnp.zeros(1)}, {})
    with pytest.raises(CheckpointMismatchError, match=message):
        restore_tree(tmp_path / "tree", target)


def test_missing_tree_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no complete checkpoint at .*absent"):
        restore_tree(tmp_path / "absent", {})
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match=r"no complete checkpoint at .*empty"):
        read_metadata(tmp_path / "empty")


def test_phase_checkpoint_moves_the_iterator_and_keeps_two(tmp_path):
    saved = PhaseCheckpoints(tmp_path / "phase")
    assert saved.latest_step() is None
    batches = iter(toy_phase.stream(toy_phase.elements()))
    for step in (1, 2, 3):
        next(batches)
        saved.save(step, {"step": jnp.asarray(step)}, batches, {"note": step})
    assert saved.latest_step() == 3
    assert sorted(path.name for path in (tmp_path / "phase").iterdir()) == ["2", "3"]
    again = iter(toy_phase.stream(toy_phase.elements()))
    state, metadata = saved.restore(3, {"step": jnp.asarray(0)}, again)
    assert state == {"step": 3}
    assert metadata == {"note": 3}
    np.testing.assert_array_equal(next(again)["row"], next(batches)["row"])


def test_half_written_checkpoints_are_ignored_and_cleared(tmp_path):
    saved = PhaseCheckpoints(tmp_path)
    batches = iter(toy_phase.stream(toy_phase.elements()))
    saved.save(5, {"a": jnp.zeros(1)}, batches, {})
    (tmp_path / "7").mkdir()  # its contents lost.
    (tmp_path / "8.orbax-checkpoint-tmp" / "tree").mkdir(parents=True)  # killed while saving.
    assert saved.latest_step() == 5
    for step in (7, 8):
        saved.save(step, {"a": jnp.ones(1)}, batches, {})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["7", "8"]
    np.testing.assert_array_equal(restore_tree(saved.path(7), {"a": jnp.zeros(1)})["a"], 1.0)


CONFIG = {
    "data": {"path": "yelp", "length": 20},
    "model": {"width": 8, "heads": (1, 2)},
    "steps": 9,
}


def changed(section, **fields):
    return CONFIG | {section: CONFIG[section] | fields}


def test_workdir_takes_its_first_config_and_accepts_it_again(tmp_path):
    for _ in range(2):
        check_workdir(tmp_path / "new", CONFIG)
    assert read_config(tmp_path / "new") == json.loads(json.dumps(CONFIG))
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["config.json"]


def test_a_workdir_that_holds_nothing_else_is_bound_anew(tmp_path):
    check_workdir(tmp_path, CONFIG)
    check_workdir(tmp_path / "tokenizers", CONFIG)
    (tmp_path / "systems").mkdir()
    check_workdir(tmp_path, changed("model", width=16))
    assert read_config(tmp_path)["model"]["width"] == 16


def test_workdir_of_another_config_names_every_field_that_differs(tmp_path):
    check_workdir(tmp_path, CONFIG)
    (tmp_path / "data.parquet").touch()
    other = changed("model", width=16, depth=2)
    del other["steps"]
    with pytest.raises(ConfigMismatchError) as caught:
        check_workdir(tmp_path, other)
    assert str(tmp_path) in str(caught.value)
    assert str(caught.value).splitlines()[1:] == [
        "  model.depth: found nothing, expected 2",
        "  model.width: found 8, expected 16",
        "  steps: found 9, expected nothing",
    ]
    assert read_config(tmp_path)["model"]["width"] == 8


@pytest.mark.parametrize("free", [["data.path", "steps"], ["data", "steps"]])
def test_free_fields_may_change_and_the_file_follows(tmp_path, free):
    check_workdir(tmp_path, CONFIG)
    check_workdir(tmp_path, changed("data", path="beauty") | {"steps": 99}, free=free)
    assert read_config(tmp_path)["data"]["path"] == "beauty"
    assert read_config(tmp_path)["steps"] == 99
    (tmp_path / "metrics.jsonl").touch()
    with pytest.raises(ConfigMismatchError, match=r"model\.width"):
        check_workdir(tmp_path, changed("model", width=1), free=free)


def test_an_error_while_writing_leaves_no_config(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError("disk full")

    monkeypatch.setattr(checkpoints.os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        check_workdir(tmp_path, CONFIG)
    assert not (tmp_path / "config.json").exists()
