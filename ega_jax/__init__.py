"""Generative advertising in JAX: EGA-V2, its baselines and a market that knows the truth.

Names are imported when they are first used, so that `import ega_jax` costs nothing.

    >>> import ega_jax
    >>> "Mechanism" in ega_jax.__all__
    True
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ega_jax.auction.system import Levers
    from ega_jax.errors import UserError
    from ega_jax.generation.book_ledger import BookLedger
    from ega_jax.mechanism import Mechanism
    from ega_jax.types import BookRequest, Request, Slate

__version__ = "0.2.0"
__all__ = [
    "BookLedger",
    "BookRequest",
    "Levers",
    "Mechanism",
    "Request",
    "Slate",
    "UserError",
    "__version__",
]

_HOMES = {
    "BookLedger": "ega_jax.generation.book_ledger",
    "BookRequest": "ega_jax.types",
    "Levers": "ega_jax.auction.system",
    "Mechanism": "ega_jax.mechanism",
    "Request": "ega_jax.types",
    "Slate": "ega_jax.types",
    "UserError": "ega_jax.errors",
}


def __getattr__(name: str) -> Any:
    """Imports an exported name from its module."""
    if name not in _HOMES:
        raise AttributeError(f"module 'ega_jax' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    """The exported names, also those that are not imported yet."""
    return sorted({*globals(), *__all__})
