"""What `import ega_jax` offers, and that it costs nothing."""

import subprocess
import sys

import pytest

import ega_jax

NAMES = {"Mechanism", "Request", "Slate", "Levers", "BookLedger", "BookRequest"}


def test_importing_the_package_does_not_import_jax():
    code = "import sys, ega_jax; print(sorted({'jax', 'flax', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_exported_names_are_those_of_their_modules():
    from ega_jax import BookLedger, BookRequest, Levers, Mechanism, Request, Slate, UserError
    from ega_jax.auction import system
    from ega_jax.errors import UserError as OfErrors
    from ega_jax.generation import book_ledger
    from ega_jax.mechanism import Mechanism as OfMechanism
    from ega_jax.types import BookRequest as OfBooks
    from ega_jax.types import Request as OfTypes
    from ega_jax.types import Slate as OfSlates

    assert (Levers, Mechanism, UserError) == (system.Levers, OfMechanism, OfErrors)
    assert (Request, BookRequest, Slate) == (OfTypes, OfBooks, OfSlates)
    assert BookLedger is book_ledger.BookLedger
    assert ega_jax.Mechanism is Mechanism


def test_exported_names_are_listed():
    assert set(dir(ega_jax)) >= NAMES | {"UserError", "__version__"}
    assert set(ega_jax.__all__) >= NAMES
    for name in ega_jax.__all__:
        assert getattr(ega_jax, name) is not None


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'ega_jax' has no attribute 'Mechanisms'"):
        _ = ega_jax.Mechanisms
    with pytest.raises(ImportError, match="Mechanisms"):
        from ega_jax import Mechanisms  # noqa: F401
