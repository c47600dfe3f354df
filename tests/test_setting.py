"""How settings are declared: types, ranges, relations, changes, and what is free to change."""

import dataclasses
import re

import pytest

from ega_jax.errors import UserError
from ega_jax.setting import (
    NOTHING,
    SYSTEM,
    WORKDIR,
    Tree,
    leaves,
    part_of,
    same_as,
    setting,
)


@dataclasses.dataclass(frozen=True)
class Sizes:
    width: int = setting(8, at_least=1)
    kinds: tuple[str, ...] = setting(("a",), choices={"a": 1, "b": 2})


@dataclasses.dataclass(frozen=True)
class Model(Sizes):
    width: int = 16
    rate: float | None = setting(0.5, above=0)
    share: float = setting(0.1, at_least=0, below=1, binds=NOTHING)
    pair: tuple[float, float] = setting((0.25, 0.75), above=0, at_most=1)

    def problems(self):
        if self.pair[0] > self.pair[1]:
            yield "pair", f"{self.pair} falls"


@dataclasses.dataclass(frozen=True)
class Search:
    width: int = same_as(Model, "width")
    on: bool = setting(True)


@dataclasses.dataclass(frozen=True)
class Whole(Tree):
    name: str = setting("x")
    model: Model = setting(Model())
    search: Search = setting(Search(), binds=SYSTEM)

    def problems(self):
        if self.search.width > self.model.width:
            yield "search.width", "wider than the model"


def test_a_dictionary_and_back():
    tree = Whole().changed({"model.kinds": ["b", "a"], "model": {"rate": None}, "name": "y"})
    assert tree.model.kinds == ("b", "a")
    assert tree.model.rate is None
    assert Whole.from_dict(tree.to_dict()) == tree
    assert hash(Whole.from_dict(tree.to_dict())) == hash(tree)
    assert Whole().name == "x", "the old ones are as they were"


def test_a_whole_number_stands_for_a_float_and_a_list_for_a_tuple():
    tree = Whole.from_dict({"model": {"rate": 2, "pair": [0.5, 1]}})
    assert (tree.model.rate, tree.model.pair) == (2.0, (0.5, 1.0))
    assert all(type(value) is float for value in (tree.model.rate, *tree.model.pair))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model.width": 0}, "config.model.width is 0: it must be at least 1"),
        ({"model.rate": 0.0}, "config.model.rate is 0.0: it must be above 0"),
        ({"model.rate": float("nan")}, "config.model.rate is nan: it must be above 0"),
        ({"model.share": 1.0}, "config.model.share is 1.0: it must be a share below 1"),
        ({"model.pair": (0.5, 0.0)}, "config.model.pair is 0.0: it must be a share above 0"),
        ({"model.pair": (0.5,)}, "config.model.pair is (0.5,): it must have 2 entries"),
        ({"model.pair": (0.7, 0.2)}, "config.model.pair: (0.7, 0.2) falls"),
        ({"model.kinds": ("c",)}, "config.model.kinds: 'c' is not one of a, b"),
        ({"search.width": 17}, "config.search.width: wider than the model"),
        ({"model.width": 1.5}, "config.model.width is 1.5: it must be of type int"),
        ({"model.width": True}, "config.model.width is True: it must be of type int"),
        ({"search.on": 1}, "config.search.on is 1: it must be of type bool"),
        ({"model.rate": "1"}, "config.model.rate is '1': it must be of type float or none"),
        ({"name": None}, "config.name is None: it must be of type str"),
    ],
)
def test_a_wrong_value_is_named(changes, message):
    with pytest.raises(UserError, match=re.escape(message)):
        Whole().changed(changes)


@pytest.mark.parametrize("name", ["model.wide", "modle.width", "model", "name.first"])
def test_an_unknown_field_is_answered_with_the_valid_ones(name):
    with pytest.raises(UserError) as caught:
        Whole().changed({name: 1})
    first, *valid = str(caught.value).splitlines()
    assert first == f"no config field config.{name}; valid fields:"
    assert [line.strip() for line in valid] == sorted(f"config.{x.name}" for x in leaves(Whole()))


def test_fields_are_checked_when_all_are_changed():
    assert Whole().changed({"search.width": 32, "model.width": 32}).search.width == 32


def test_a_subclass_restates_a_default_and_inherits_the_range():
    assert Whole().model.width == 16
    assert Whole().search.width == 16
    for name in ("model.width", "search.width"):
        with pytest.raises(UserError, match=f"config.{name} is 0"):
            Whole().changed({name: 0})


def test_what_may_change_in_a_workdir_and_in_a_system():
    assert Whole().free(WORKDIR) == ("model.share", "search.width", "search.on")
    assert Whole().free(SYSTEM) == ("model.share",)
    assert Whole.groups(SYSTEM) == ("search",)


def test_choices_are_looked_at_when_a_value_is_checked():
    choices = {"a": 1}

    @dataclasses.dataclass(frozen=True)
    class Registered(Tree):
        kind: str = setting("a", choices=choices)

    choices["c"] = 3
    assert Registered().changed({"kind": "c"}).kind == "c"


def test_a_part_is_what_a_base_declares():
    assert part_of(Model(), Sizes) == {"width": 16, "kinds": ("a",)}
    with pytest.raises(TypeError, match="Search does not inherit from Sizes"):
        part_of(Search(), Sizes)
