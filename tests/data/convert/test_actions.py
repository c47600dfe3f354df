import collections
import subprocess
import sys

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given

from ega_jax.data.convert.actions import Actions, hash_of_names
from ega_jax.data.convert.source import Action

ACTIONS = st.lists(
    st.builds(Action, st.sampled_from("abcdef"), st.sampled_from("uvwxyz"), st.integers(0, 9)),
    max_size=40,
)


def named(actions):
    return [
        Action(actions.user_names[user], actions.item_names[item], int(time))
        for user, item, time in zip(actions.user, actions.item, actions.time, strict=True)
    ]


def histories(table):
    """Names of each user's items, in the order of the sequence."""
    items, _ = table.sequences()
    names = [table.item_names[item] for item in items.values]
    rows = zip(items.offsets[:-1], items.offsets[1:], strict=True)
    return {user: names[a:b] for user, (a, b) in zip(table.user_names, rows, strict=True) if b > a}


def k_core_by_removal(actions, k):
    """Takes away one bad action at a time."""
    actions = list(actions)
    while True:
        users = collections.Counter(action.user for action in actions)
        items = collections.Counter(action.item for action in actions)
        bad = [a for a in actions if users[a.user] < k or items[a.item] < k]
        if not bad:
            return actions
        actions.remove(bad[0])


@given(ACTIONS, st.integers(1, 4))
def test_k_core_is_what_removal_leaves(actions, k):
    core = Actions.collect(actions).k_core(k)
    left = k_core_by_removal(actions, k)
    assert sorted(map(repr, named(core))) == sorted(map(repr, left))
    assert set(core.user_names) == {action.user for action in left}
    assert set(core.item_names) == {action.item for action in left}


@given(ACTIONS)
def test_the_first_of_each_repeat_is_kept(actions):
    assert named(Actions.collect(actions).without_repeats()) == list(dict.fromkeys(actions))


@given(ACTIONS)
def test_tied_actions_share_user_and_time(actions):
    count = collections.Counter((action.user, action.time) for action in actions)
    expected = [count[action.user, action.time] > 1 for action in actions]
    assert Actions.collect(actions).tied().tolist() == expected


@given(ACTIONS)
def test_sequences_are_in_time_order(actions):
    table = Actions.collect(actions)
    _, times = table.sequences()
    key = lambda action: (action.time, hash_of_names(action.user, action.item))
    if table.in_time_order:
        key = lambda action: action.time
    for number, user in enumerate(table.user_names):
        mine = sorted((a for a in actions if a.user == user), key=key)
        row = slice(times.offsets[number], times.offsets[number + 1])
        assert histories(table)[user] == [a.item for a in mine]
        assert times.values[row].tolist() == [action.time for action in mine]


@given(ACTIONS, st.randoms())
def test_histories_do_not_depend_on_the_order_of_the_file(actions, random):
    """Unless it is in time order, which the latest action at its start forbids."""
    late = Action("a", "u", 10)
    shuffled = list(actions)
    random.shuffle(shuffled)
    first, second = (Actions.collect([late, *rows, late]) for rows in (actions, shuffled))
    if actions:
        assert histories(first) == histories(second)


def test_ties_do_not_follow_item_ids():
    """One file by item id at one time; one by user and item with few times."""
    numbers = range(100)
    equal = Actions.collect([Action("a", f"{n:03}", 7) for n in numbers])
    few = Actions.collect([Action(u, f"{n:03}", n % 3) for u in "ab" for n in numbers])
    assert not equal.in_time_order
    assert not few.in_time_order
    for table in (equal, few):
        ids = np.array(histories(table)["a"], int)
        together = (ids[1:] > ids[:-1])[ids[1:] % 3 == ids[:-1] % 3]
        assert 0.3 < together.mean() < 0.7
    assert histories(few)["a"] != histories(few)["b"]


def test_a_file_in_time_order_keeps_its_order():
    rows = [
        ("a", "z", 1),
        ("b", "y", 1),
        ("a", "y", 1),
        ("a", "x", 1),
        ("a", "w", 2),
        ("b", "z", 2),
    ]
    table = Actions.collect([Action(*row) for row in rows])
    assert table.in_time_order
    assert histories(table) == {"a": ["z", "y", "x", "w"], "b": ["y", "z"]}
    assert histories(table.k_core(2)) == {"a": ["z", "y"], "b": ["y", "z"]}


def test_a_file_ordered_by_user_is_not_in_time_order():
    rows = [("a", "z", 1), ("a", "y", 2), ("b", "z", 1)]
    assert not Actions.collect([Action(*row) for row in rows]).in_time_order


@pytest.mark.parametrize("seed", ["0", "1"])
def test_the_hash_is_the_same_in_every_process(seed):
    code = "from ega_jax.data.convert.actions import hash_of_names as h; print(h('é', 'b'))"
    environment = {"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert int(done.stdout) == hash_of_names("é", "b") == 875631726742456778


def test_names_are_numbered_as_they_appear():
    table = Actions.collect([Action("b", "y", 2), Action("a", "y", 1), Action("b", "x", 0)])
    assert (table.user_names, table.item_names) == (["b", "a"], ["y", "x"])
    np.testing.assert_array_equal(table.user, [0, 1, 0])
    np.testing.assert_array_equal(table.item, [0, 0, 1])
    assert table.user.dtype == np.int32
