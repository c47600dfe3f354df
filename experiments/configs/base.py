"""What the config files share: variants by name, and the form that flags can change."""

from collections.abc import Mapping
from typing import Any

from ml_collections import ConfigDict

from ega_jax.errors import UserError
from ega_jax.setting import Tree


def flags_of(settings: Tree) -> ConfigDict:
    """The settings as `ml_collections` takes them from a config file."""
    return ConfigDict(settings.to_dict())


def choose(variant: str, variants: Mapping[str, dict[str, Any]]) -> dict[str, Any]:
    """Picks a variant's changes of the defaults.

    Raises:
      UserError: there is no such variant; the message lists those there are.
    """
    if variant not in variants:
        raise UserError(f"no variant {variant!r}; valid variants: {', '.join(variants)}")
    return variants[variant]
