"""Declaration of settings: frozen dataclasses whose fields carry default, range and binding.

A group of settings is defined next to the code that reads it. `setting` declares a field with its
default, its range or choices, and its binding: the folder that fixes its value once the folder
exists. A comment beside the field explains it. A model's config inherits its group and adds the
sizes that come from the data. A `Tree` holds groups; commands read one. The tree of the main job is
`ega_jax.baselines.settings.Settings`.

A subclass may override a default by `name: type = value`; range and binding are inherited.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Self, TypeVar

from flax.traverse_util import flatten_dict, unflatten_dict

from ega_jax.errors import UserError

WORKDIR = "workdir"  # The field cannot change once the workdir exists.
SYSTEM = "system"  # The field cannot change once the system's own folder exists.
NOTHING = "nothing"  # The field may change from run to run.
DTYPES = ("float32", "bfloat16")  # Valid computation dtypes of a model.

Group = TypeVar("Group")


@dataclasses.dataclass(frozen=True)
class Rule:
    """The valid values of a field, or of each entry if the field is a tuple."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: Collection[str] | None = None

    def problem(self, value: Any) -> str:
        """Describes why a value is invalid, as the end of a sentence; empty if it is valid."""
        if self.choices is not None:
            valid = ", ".join(self.choices)
            return "" if value in self.choices else f": {value!r} is not one of {valid}"
        if isinstance(value, bool | str) or value is None:
            return ""
        return "" if self._allows(value) else f" is {value}: it must be {self.words}"

    @property
    def words(self) -> str:
        """The range in words."""
        if self.at_most is not None or self.below is not None:
            low = "above 0" if self.above is not None else "from 0 to 1"
            return f"a share {low if self.below is None else f'below {self.below}'}"
        if self.above is not None:
            return f"above {self.above}"
        return "a finite number" if self.at_least is None else f"at least {self.at_least}"

    def _allows(self, value: float) -> bool:
        return (
            math.isfinite(value)
            and (self.at_least is None or value >= self.at_least)
            and (self.above is None or value > self.above)
            and (self.at_most is None or value <= self.at_most)
            and (self.below is None or value < self.below)
        )


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A field of a tree that holds a value, not a group."""

    name: str  # Dotted, such as `allocation.beta`.
    value: Any
    rule: Rule
    binds: str  # WORKDIR, SYSTEM or NOTHING.


def setting(
    default: Any = dataclasses.MISSING,
    *,
    at_least: float | None = None,
    above: float | None = None,
    at_most: float | None = None,
    below: float | None = None,
    choices: Collection[str] | None = None,
    binds: str | None = None,
) -> Any:
    """Declares a field of a group.

    Args:
      default: a value, or the default group; without a default, each subclass must give one.
      at_least: inclusive lower bound.
      above: exclusive lower bound.
      at_most: inclusive upper bound.
      below: exclusive upper bound.
      choices: the valid names; read when a value is checked, so a registry may still grow.
      binds: WORKDIR, SYSTEM or NOTHING; by default the binding of the field's group, else WORKDIR.
    """
    rule = Rule(at_least, above, at_most, below, choices)
    return dataclasses.field(default=default, metadata={"rule": rule, "binds": binds})


def same_as(kind: type, name: str) -> Any:
    """Declares a field with default, range and binding copied from a field of another group."""
    known = {field.name: field for field in dataclasses.fields(kind)}[name]
    return dataclasses.field(default=known.default, metadata=_stated(kind, name))


def part_of(settings: Any, kind: Any) -> dict[str, Any]:
    """Values of the fields inherited from base class `kind`, as keywords for a model's config.

    Raises:
      TypeError: the settings do not inherit from `kind`.
    """
    if not isinstance(settings, kind):
        raise TypeError(f"{type(settings).__name__} does not inherit from {kind.__name__}")
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(kind)}


def leaves(group: Any, prefix: str = "", binds: str = WORKDIR) -> Iterator[Leaf]:
    """Yields all fields of a group and its subgroups that hold values."""
    for field in dataclasses.fields(group):
        value, stated = getattr(group, field.name), _stated(type(group), field.name)
        own = stated.get("binds") or binds
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.", own)
        else:
            yield Leaf(prefix + field.name, value, stated.get("rule", Rule()), own)


@dataclasses.dataclass(frozen=True)
class Tree:
    """Base class of a complete tree of settings; its values are checked on construction.

    A group may define a method `problems`, which yields `(field, problem)` if the values of its
    fields are inconsistent. The tree's own `problems` may use dotted names.

    Raises:
      UserError: a value is out of range or not a valid choice, or fields are inconsistent; names
        the field.
    """

    def __post_init__(self):
        """Checks each value, then the consistency of the values."""
        for leaf in leaves(self):
            for value in leaf.value if isinstance(leaf.value, tuple) else (leaf.value,):
                if problem := leaf.rule.problem(value):
                    raise UserError(f"config.{leaf.name}{problem}")
        for name, problem in _problems(self):
            raise UserError(f"config.{name}: {problem}")

    @classmethod
    def from_dict(cls, nested: Mapping[str, Any]) -> Self:
        """The default settings with some fields set; see `changed`."""
        return cls().changed(nested)

    def to_dict(self) -> dict[str, Any]:
        """The settings as nested dictionaries, the format of `config.json`."""
        return dataclasses.asdict(self)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """A copy of these settings with some fields set.

        Args:
          changes: values by dotted name (`allocation.beta`), in nested dictionaries, or both.

        Raises:
          UserError: a field does not exist, a value has the wrong type, or a check fails.
        """
        given = flatten_dict(dict(changes), sep=".")
        valid = [leaf.name for leaf in leaves(self)]
        if unknown := [name for name in given if name not in valid]:
            raise UserError(unknown_fields(unknown, valid))
        return _replaced(self, unflatten_dict(given, sep="."))

    @classmethod
    def groups(cls, binds: str) -> tuple[str, ...]:
        """The names of the groups with the given binding; see `setting`."""
        return tuple(
            field.name
            for field in dataclasses.fields(cls)
            if dataclasses.is_dataclass(field.default)
            and (_stated(cls, field.name).get("binds") or WORKDIR) == binds
        )

    def free(self, place: str) -> tuple[str, ...]:
        """The dotted names of the fields that may change in an existing folder.

        Args:
          place: WORKDIR, or SYSTEM for the folder of one system; fields bound to the workdir are
            fixed there too.
        """
        return free_fields(self, place)


def free_fields(group: Any, place: str, prefix: str = "") -> tuple[str, ...]:
    """The names of a group's fields that may change in an existing folder; see `Tree.free`."""
    fixed = (WORKDIR,) if place == WORKDIR else (WORKDIR, SYSTEM)
    return tuple(leaf.name for leaf in leaves(group, prefix) if leaf.binds not in fixed)


def unknown_fields(unknown: Collection[str], valid: Collection[str]) -> str:
    """The error message for fields that do not exist; lists all valid fields."""
    named = ", ".join(f"config.{name}" for name in unknown)
    return f"no config field {named}; valid fields:\n  " + "\n  ".join(
        f"config.{name}" for name in sorted(valid)
    )


def _stated(kind: type, name: str) -> Mapping[str, Any]:
    """A field's metadata from the nearest base class that declares it with `setting`."""
    for base in kind.__mro__:
        field = getattr(base, "__dataclass_fields__", {}).get(name)
        if field is not None and field.metadata:
            return field.metadata
    return {}


def _problems(group: Any, prefix: str = "") -> Iterator[tuple[str, str]]:
    for field in dataclasses.fields(group):
        if dataclasses.is_dataclass(inner := getattr(group, field.name)):
            yield from _problems(inner, f"{prefix}{field.name}.")
    for kind in type(group).__mro__:
        if "problems" in vars(kind):
            for name, problem in vars(kind)["problems"](group):
                yield prefix + name, problem


def _replaced(group: Group, nested: Mapping[str, Any], prefix: str = "") -> Group:
    hints, new = typing.get_type_hints(type(group)), {}
    for name, value in nested.items():
        old, dotted = getattr(group, name), f"{prefix}{name}"
        new[name] = (
            _replaced(old, value, f"{dotted}.")
            if dataclasses.is_dataclass(old)
            else _typed(hints[name], value, dotted)
        )
    return dataclasses.replace(group, **new)  # pyrefly: ignore


def _typed(hint: Any, value: Any, name: str) -> Any:
    """Converts a value to its field's type: lists to tuples, integers to floats if required."""
    options = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    if value is None and type(None) in options:
        return None
    kind = options[0]
    if typing.get_origin(kind) is tuple and isinstance(value, list | tuple):
        inner, *others = typing.get_args(kind)
        if others != [...] and len(value) != 1 + len(others):
            raise UserError(f"config.{name} is {value}: it must have {1 + len(others)} entries")
        return tuple(_typed(inner, each, name) for each in value)
    if kind is float and type(value) is int:
        return float(value)
    if type(value) is not kind:
        words = getattr(kind, "__name__", str(kind)) + " or none" * (len(options) > 1)
        raise UserError(f"config.{name} is {value!r}: it must be of type {words}")
    return value
