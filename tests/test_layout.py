"""Who may import whom: the folders are stages, and the market's truth is for judges alone."""

import ast
from pathlib import Path

import pytest

import ega_jax

ROOT = Path(ega_jax.__file__).parent
STAGES = (  # In order of flow.
    "data",
    "quantization",
    "generation",
    "reward",
    "payment",
    "auction",
    "training",
    "explanation",
    "mechanism",
    "phases",
    "evaluation",
    "baselines",
    "systems",
)
METHOD = STAGES[1:6]
TRUTH = "ega_jax.data.market.clicks", "ega_jax.data.market.calibration"
MODULES = sorted(ROOT.rglob("*.py"))


def imports(path):
    """Modules of the package that a file imports, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def stage(dotted):
    """The folder of a module given by its dotted name, if it is in one."""
    parts = dotted.split(".")
    return parts[1] if parts[0] == "ega_jax" and len(parts) > 1 and parts[1] in STAGES else None


@pytest.mark.parametrize("path", MODULES, ids=lambda p: str(p.relative_to(ROOT)))
def test_a_stage_imports_only_those_before_it(path):
    own = path.relative_to(ROOT).parts[0].removesuffix(".py")
    if own not in STAGES:
        pytest.skip("not in a stage")
    for name in imports(path):
        imported = stage(name)
        later = imported and STAGES.index(imported) > STAGES.index(own)
        assert not later, f"{own} imports {name}, which comes later"


def test_training_code_never_reads_the_truth():
    """Only the market itself and what judges models and auctions do."""
    readers = {
        path.relative_to(ROOT).parts[:2]
        for path in MODULES
        if any(name.startswith(TRUTH) for name in imports(path))
    }
    assert readers, "the test looks for the right module"
    names = ("attainable", "auction", "response", "serving")
    judges = {("evaluation", f"{name}.py") for name in names}
    assert readers <= {("data", "market"), *judges}


def test_the_method_knows_nothing_of_files_and_flags():
    forbidden = ("orbax", "absl", "pyarrow", "grain", "tensorboardX", "pathlib", "json")
    for path in MODULES:
        if path.relative_to(ROOT).parts[0] in METHOD:
            found = [name for name in imports(path) if name.split(".")[0] in forbidden]
            assert not found, f"{path.name} imports {found}"
