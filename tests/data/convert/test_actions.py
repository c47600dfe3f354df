import collections

import hypothesis.strategies as st
import numpy as np
from hypothesis import given

from ega_jax.data.convert.actions import Actions
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
def test_sequences_are_in_time_order(actions):
    table = Actions.collect(actions)
    items, times = table.sequences()
    for number, user in enumerate(table.user_names):
        mine = sorted((a for a in actions if a.user == user), key=lambda action: action.time)
        row = slice(items.offsets[number], items.offsets[number + 1])
        assert [table.item_names[item] for item in items.values[row]] == [a.item for a in mine]
        assert times.values[row].tolist() == [action.time for action in mine]
    assert items.num_rows == len(table.user_names)


def test_names_are_numbered_as_they_appear():
    table = Actions.collect([Action("b", "y", 2), Action("a", "y", 1), Action("b", "x", 0)])
    assert (table.user_names, table.item_names) == (["b", "a"], ["y", "x"])
    np.testing.assert_array_equal(table.user, [0, 1, 0])
    np.testing.assert_array_equal(table.item, [0, 0, 1])
    assert table.user.dtype == np.int32
