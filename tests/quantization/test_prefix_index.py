"""The index against a trie of Python dictionaries."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ega_jax.quantization import prefix_index

N, W = 12, 5  # Static shapes for all random cases of one depth: one compilation each.


def random_case(seed, num_layers, num_items):
    """Codes drawn from a skewed distribution: duplicates and uneven branching."""
    rng = np.random.default_rng(seed)
    p = rng.dirichlet(np.full(W, 0.5))
    return rng.choice(W, (num_items, num_layers), p=p).astype(np.int32)


def trie(codes, items):
    """prefix -> (set of next codes, set of items)."""
    nodes = {}
    for item in items:
        for d in range(codes.shape[1] + 1):
            children, members = nodes.setdefault(tuple(codes[item, :d]), (set(), set()))
            members.add(item)
            if d < codes.shape[1]:
                children.add(codes[item, d])
    return nodes


@functools.partial(jax.jit, static_argnums=1)
def look(index, depth, ids):
    """Span and children of the nodes `ids` of one depth, and of no node, whatever their number."""
    children = index.expand(depth, ids) if depth < len(index.levels) else None
    return index.span(depth, ids), children


def walk(index, num_layers):
    """The same dictionary, read through `expand` and `span`."""
    order = np.asarray(index.order)
    frontier, nodes = {(): 0}, {}
    for d in range(num_layers + 1):
        ids = np.full(order.shape, -1, np.int32)
        ids[: len(frontier)] = list(frontier.values())
        (low, high), children = jax.tree.map(np.asarray, look(index, d, ids))
        deeper = {}
        for s, prefix in enumerate(frontier):
            nodes[prefix] = (set(), set(order[low[s] : high[s]].tolist()))
        if d < num_layers:
            assert np.array_equal(children.node >= 0, children.where)
            for s, prefix in enumerate(frontier):
                found = children.code[s][children.where[s]].tolist()
                assert len(found) == len(set(found)), "a code is listed twice"
                nodes[prefix][0].update(found)
                for code, node in zip(found, children.node[s][children.where[s]], strict=True):
                    deeper[(*prefix, code)] = node
        frontier = deeper
    return nodes


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.sampled_from([1, 5, 12, 40]))
def test_catalogue_index_is_the_trie(seed, num_layers, num_items):
    codes = random_case(seed, num_layers, num_items)
    index = prefix_index.catalogue_index(codes, W)
    assert walk(index, num_layers) == trie(codes, range(num_items))
    assert index.num_items == num_items


def test_large_tables_become_sparse(monkeypatch):
    codes = random_case(0, 3, 40)
    dense = prefix_index.catalogue_index(codes, W)
    monkeypatch.setattr(prefix_index, "DENSE_ENTRIES", W)
    sparse = prefix_index.catalogue_index(codes, W)
    kinds = [type(level).__name__ for level in sparse.levels]
    assert kinds == ["DenseLevel", "SparseLevel", "SparseLevel"]
    assert walk(sparse, 3) == walk(dense, 3)


def test_equal_codes_keep_their_order():
    codes = np.tile(np.int32([[1, 2]]), (4, 1))
    np.testing.assert_array_equal(prefix_index.catalogue_index(codes, 3).order, [0, 1, 2, 3])


def test_no_node_has_no_children():
    index = prefix_index.catalogue_index(random_case(1, 3, N), W)
    for depth in range(3):
        children = index.expand(depth, jnp.array([-1]))
        assert not children.where.any()
        assert (children.node == -1).all()
        low, high = index.span(depth, jnp.array([-1]))
        assert low == high


def test_expand_under_jit():
    index = prefix_index.catalogue_index(random_case(2, 3, 30), W)
    node = jnp.arange(3, dtype=jnp.int32)
    jitted = jax.jit(lambda index, node: index.expand(2, node))(index, node)
    jax.tree.map(np.testing.assert_array_equal, jitted, index.expand(2, node))


@pytest.mark.parametrize(
    ("codes", "message"),
    [
        (np.zeros((0, 3), int), "non-empty"),
        (np.zeros(3, int), "non-empty"),
        (np.array([[0, 1], [0, 7]]), "item 1 are .* outside"),
        (np.array([[0, -1], [0, 0]]), "item 0 are .* outside"),
    ],
)
def test_bad_codes_are_named(codes, message):
    with pytest.raises(ValueError, match=message):
        prefix_index.catalogue_index(codes, W)


def test_narrow_codes_and_size():
    codes = np.random.default_rng(0).integers(0, 64, (5000, 3))
    index = prefix_index.catalogue_index(codes, 64)
    assert index.levels[2].code.dtype == jnp.int16
    leaves = len(np.unique(codes, axis=0))
    pairs = len(np.unique(codes[:, :2], axis=0))
    arrays = {
        "order": 4 * 5000,
        "bounds": 4 * (2 + 65 + pairs + 1 + leaves + 1),
        "tables": 4 * (64 + 64 * 64),
        "sparse": 4 * (pairs + 1) + 2 * leaves,
    }
    assert prefix_index.size_in_bytes(index) == sum(arrays.values())
