"""The examples in the docstrings of `ega_jax` give what they show."""

import doctest
import importlib
import importlib.util
import pkgutil
from pathlib import Path

import pytest

import ega_jax

MODULES = ["ega_jax", *(m.name for m in pkgutil.walk_packages(ega_jax.__path__, "ega_jax."))]
CONTRACT = {  # Functions that others call by these names; each shows an example.
    "ega_jax.payment.rules": ("gsp", "vcg", "clarke", "myerson"),
    "ega_jax.generation.bidding": ("allocation_log_probs",),
    "ega_jax.evaluation.retrieval": ("recall_ndcg",),
    "ega_jax.types": ("Request",),
}


def _source(module: str) -> str:
    return Path(importlib.util.find_spec(module).origin).read_text()


@pytest.mark.parametrize("module", [name for name in MODULES if ">>> " in _source(name)])
def test_examples_hold(module):
    result = doctest.testmod(
        importlib.import_module(module), optionflags=doctest.NORMALIZE_WHITESPACE
    )
    assert result.attempted
    assert not result.failed  # pytest shows what was printed: the example and what it gave.


@pytest.mark.parametrize("module", CONTRACT)
def test_contract_functions_show_an_example(module):
    found = importlib.import_module(module)
    assert [name for name in CONTRACT[module] if ">>> " not in getattr(found, name).__doc__] == []
