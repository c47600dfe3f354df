"""How settings are declared: frozen dataclasses whose fields say all that is known of them.

A group of settings stands beside the code that reads it. `setting` declares a field with its
default, its range or choices, and what it binds; a comment beside it says what it means. A model's
config inherits the group and adds the sizes that come from the data. A `Tree` holds groups, and is
what a command reads: `ega_jax.baselines.settings.Settings` is the tree of the main job.

A subclass may state another default as `name: type = value`; range and binding are inherited.
"""

import dataclasses
import math
import types
import typing
from collections.abc import Collection, Iterator, Mapping
from typing import Any, Self, TypeVar

from flax.traverse_util import flatten_dict, unflatten_dict

from ega_jax.errors import UserError

WORKDIR = "workdir"  # The field cannot change once the workdir is made.
SYSTEM = "system"  # It cannot change once the system's own folder is made.
NOTHING = "nothing"  # It may change from run to run.
DTYPES = ("float32", "bfloat16")  # Of a model's computation.

Group = TypeVar("Group")


@dataclasses.dataclass(frozen=True)
class Rule:
    """Which values a field may have; of a tuple, each of its entries."""

    at_least: float | None = None
    above: float | None = None
    at_most: float | None = None
    below: float | None = None
    choices: Collection[str] | None = None

    def problem(self, value: Any) -> str:
        """What is wrong with a value, as the end of a sentence; empty if nothing is."""
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

    name: str  # With dots: `allocation.beta`.
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
      default: a value, or the default group; a field without one is stated by each subclass.
      at_least: the least value.
      above: a bound that values exceed.
      at_most: the largest value.
      below: a bound that values stay under.
      choices: the valid names; looked at when a value is checked, so a registry may grow.
      binds: WORKDIR, SYSTEM or NOTHING; default: what the field's group binds, or else WORKDIR.
    """
    rule = Rule(at_least, above, at_most, below, choices)
    return dataclasses.field(default=default, metadata={"rule": rule, "binds": binds})


def same_as(kind: type, name: str) -> Any:
    """Declares a field with the default, range and binding of a field of another group."""
    known = {field.name: field for field in dataclasses.fields(kind)}[name]
    return dataclasses.field(default=known.default, metadata=_stated(kind, name))


def part_of(settings: Any, kind: Any) -> dict[str, Any]:
    """The fields that settings inherit from one of their bases, as keywords for a model's config.

    Raises:
      TypeError: the settings do not inherit from `kind`.
    """
    if not isinstance(settings, kind):
        raise TypeError(f"{type(settings).__name__} does not inherit from {kind.__name__}")
    return {field.name: getattr(settings, field.name) for field in dataclasses.fields(kind)}


def leaves(group: Any, prefix: str = "", binds: str = WORKDIR) -> Iterator[Leaf]:
    """All fields below a group that hold values."""
    for field in dataclasses.fields(group):
        value, stated = getattr(group, field.name), _stated(type(group), field.name)
        own = stated.get("binds") or binds
        if dataclasses.is_dataclass(value):
            yield from leaves(value, f"{prefix}{field.name}.", own)
        else:
            yield Leaf(prefix + field.name, value, stated.get("rule", Rule()), own)


@dataclasses.dataclass(frozen=True)
class Tree:
    """Base of a whole tree of settings; every instance has passed the checks.

    A group may have a method `problems`, which yields `(field, what is wrong)` where fields of the
    group do not fit together; the tree's own may name fields of its groups with dots.

    Raises:
      UserError: a value is out of its range or not a valid choice, or fields do not fit together;
        names the field.
    """

    def __post_init__(self):
        """Checks every value, then how values fit together."""
        for leaf in leaves(self):
            for value in leaf.value if isinstance(leaf.value, tuple) else (leaf.value,):
                if problem := leaf.rule.problem(value):
                    raise UserError(f"config.{leaf.name}{problem}")
        for name, problem in _problems(self):
            raise UserError(f"config.{name}: {problem}")

    @classmethod
    def from_dict(cls, nested: Mapping[str, Any]) -> Self:
        """The defaults changed by nested fields; see `changed`."""
        return cls().changed(nested)

    def to_dict(self) -> dict[str, Any]:
        """Nested dictionaries, as they are saved in `config.json`."""
        return dataclasses.asdict(self)

    def changed(self, changes: Mapping[str, Any]) -> Self:
        """These settings with some fields set.

        Args:
          changes: values by dotted name (`allocation.beta`), by nested dictionaries, or by both.

        Raises:
          UserError: there is no such field, the value is of another type, or a check fails.
        """
        given = flatten_dict(dict(changes), sep=".")
        valid = [leaf.name for leaf in leaves(self)]
        if unknown := [name for name in given if name not in valid]:
            raise UserError(unknown_fields(unknown, valid))
        return _replaced(self, unflatten_dict(given, sep="."))

    @classmethod
    def groups(cls, binds: str) -> tuple[str, ...]:
        """The names of the groups that bind the given folder; see `setting`."""
        return tuple(
            field.name
            for field in dataclasses.fields(cls)
            if dataclasses.is_dataclass(field.default)
            and (_stated(cls, field.name).get("binds") or WORKDIR) == binds
        )

    def free(self, place: str) -> tuple[str, ...]:
        """The dotted names of the fields that may change in a folder that is there already.

        Args:
          place: WORKDIR or SYSTEM: the folder of one of its systems, which the fields of the
            workdir bind too.
        """
        return free_fields(self, place)


def free_fields(group: Any, place: str, prefix: str = "") -> tuple[str, ...]:
    """The names of a group's fields that may change in a folder; see `Tree.free`."""
    fixed = (WORKDIR,) if place == WORKDIR else (WORKDIR, SYSTEM)
    return tuple(leaf.name for leaf in leaves(group, prefix) if leaf.binds not in fixed)


def unknown_fields(unknown: Collection[str], valid: Collection[str]) -> str:
    """The message about fields that do not exist, with all that do."""
    named = ", ".join(f"config.{name}" for name in unknown)
    return f"no config field {named}; valid fields:\n  " + "\n  ".join(
        f"config.{name}" for name in sorted(valid)
    )


def _stated(kind: type, name: str) -> Mapping[str, Any]:
    """What the nearest class says of a field by `setting`; its subclasses may restate a default."""
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
    """A value as its field's type: lists become tuples, whole numbers may stand for floats."""
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
