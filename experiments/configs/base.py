"""Functions shared by the config files: variants by name, and conversion to `ConfigDict`."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ega_jax.errors import UserError
from ega_jax.setting import Tree


def flags_of(settings: Tree) -> ConfigDict:
    """Converts settings to a `ConfigDict`, whose fields flags can change."""
    return ConfigDict(settings.to_dict())


def choose(variant: str, variants: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Returns a variant's changes of the defaults.

    Raises:
      UserError: there is no such variant; lists the valid ones.
    """
    if variant not in variants:
        raise UserError(f"no variant {variant!r}; valid variants: {', '.join(variants)}")
    return variants[variant]
