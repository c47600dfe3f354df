"""Settings that differ from the defaults, and how to repeat a run."""

from collections.abc import Mapping, Sequence
from typing import Any

from ega_jax.reporting.blocks import Code, Folded, Section, Table, Text

Fields = Mapping[str, Any]  # Setting by dotted name.


def settings_section(
    defaults: Fields, workdir: Fields, systems: Mapping[str, Fields], commands: Sequence[str]
) -> Section:
    """Lists settings that differ from the defaults, and the commands that repeat the run.

    Args:
      defaults: of all settings.
      workdir: those of the workdir.
      systems: those of each system.
      commands: to be run in the order given.
    """
    shared = [
        [name, _cell(value), _cell(defaults[name])] for name, value in _changed(workdir, defaults)
    ]
    own = [
        [f"{system}: {name}", _cell(value), _cell(workdir[name])]
        for system, fields in systems.items()
        for name, value in _changed(fields, workdir)
    ]
    blocks = [
        Text("These commands make the workdir again, and this report:"),
        Code("\n".join(commands)),
        Folded(
            f"{len(shared)} settings of the workdir that differ from the defaults",
            [Table(("setting", "value", "default"), shared)],
        ),
    ]
    if own:
        table = Table(("setting", "value", "in the workdir"), own)
        blocks.append(Folded("Settings of systems that differ from the workdir's", [table]))
    return Section("Settings, and how to repeat it", blocks)


def flags_of(fields: Fields, base: Fields) -> list[str]:
    """The flags that turn one config into another."""
    return [f"--config.{name}={_flag(value)}" for name, value in _changed(fields, base)]


def _changed(fields: Fields, base: Fields) -> list[tuple[str, Any]]:
    return [(name, value) for name, value in fields.items() if value != base[name]]


def _cell(value: Any) -> str:
    return "none" if value in ("", ()) else str(value)


def _flag(value: Any) -> str:
    text = str(value).replace(" ", "")
    return f"'{text}'" if set(text) & set("()") else text
