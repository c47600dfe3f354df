"""Structs taken apart into arrays and JSON, and put together again."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import struct

from ega_jax.errors import UserError
from ega_jax.training.structs import describe, rebuild, to_tree


@dataclasses.dataclass(frozen=True)
class Inner:
    """A static part; one of its fields follows from another."""

    widths: tuple[int, ...] = (3, 4)
    name: str = "inner"
    total: int = dataclasses.field(init=False)

    def __post_init__(self):
        object.__setattr__(self, "total", sum(self.widths))


@dataclasses.dataclass(frozen=True)
class Outer:
    """A static part that holds another one."""

    inner: Inner
    rate: float | None = None
    on: bool = True


@struct.dataclass
class Leafy:
    """Arrays and a static part."""

    x: Any
    y: Any
    sizes: Outer = struct.field(pytree_node=False)


@struct.dataclass
class Tree:
    """Everything that a struct may hold."""

    leafy: Leafy
    params: Any
    several: Any
    nothing: Any
    label: str = struct.field(pytree_node=False, default="tree")


def tree():
    sizes = Outer(Inner((5, 6)), rate=0.5, on=False)
    leafy = Leafy(jnp.arange(3), np.float32([[1, 2]]), sizes)
    params = {"b": {"kernel": jnp.ones((2, 2)), "none": None, "empty": {}}, "a": jnp.float32(7)}
    other = Leafy(jnp.zeros(0), None, Outer(Inner()))
    several = (*(jnp.full(2, i) for i in range(12)), (other, None), ())
    return Tree(leafy, params, several, None, label="a tree")


def taken_apart(value):
    """What is saved of a value: its description as JSON, and its arrays."""
    return json.loads(json.dumps(describe(value))), to_tree(value)


def assert_same(found, expected):
    """The same classes, static fields, arrays and types of arrays."""
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_a_struct_is_put_together_again():
    found = rebuild(*taken_apart(tree()))
    assert_same(found, tree())
    assert isinstance(found, Tree)
    assert found.label == "a tree"
    assert found.leafy.sizes == Outer(Inner((5, 6)), rate=0.5, on=False)
    assert found.leafy.sizes.inner.total == 11
    assert [int(x[0]) for x in found.several[:12]] == list(range(12))
    assert found.nothing is found.several[12][1] is found.several[12][0].y is None
    assert found.params["b"]["empty"] == {}
    assert found.several[13] == ()


@pytest.mark.parametrize("value", [{}, (), None, {"a": None}, {"a": {}, "b": (None,)}])
def test_what_holds_no_array_has_no_tree(value):
    description, arrays = taken_apart(value)
    assert not arrays
    assert rebuild(description, arrays) == value
    whole = {"nothing": value, "x": jnp.ones(2)}
    description, arrays = taken_apart(whole)
    assert arrays.keys() == {"x"}
    assert_same(rebuild(description, arrays), whole)


def test_a_tree_is_of_dictionaries_and_arrays_alone():
    def check(node):
        assert isinstance(node, dict | np.ndarray | jax.Array)
        if isinstance(node, dict):
            assert node, "nothing empty is left"
            assert all(isinstance(name, str) for name in node)
            for part in node.values():
                check(part)

    arrays = to_tree(tree())
    check(arrays)
    assert arrays.keys() == {"leafy", "params", "several"}
    assert arrays["leafy"].keys() == {"x", "y"}
    assert len(jax.tree.leaves(arrays)) == len(jax.tree.leaves(tree()))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (f"{__name__}:Gone", f"needs {__name__}:Gone, which this version has not"),
        ("ega_jax.no_such_module:Gone", "needs ega_jax.no_such_module:Gone, which"),
        ("collections:OrderedDict", "names collections:OrderedDict, which is no dataclass"),
    ],
)
def test_a_class_that_is_gone_is_named(kind, message):
    description, arrays = taken_apart(tree())
    with pytest.raises(UserError, match=message):
        rebuild(description | {"kind": kind}, arrays)
    description["parts"]["leafy"]["static"]["sizes"]["kind"] = kind
    with pytest.raises(UserError, match=message):
        rebuild(description, arrays)
