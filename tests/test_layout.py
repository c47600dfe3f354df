"""Who may import whom: the folders are stages, and the market's truth is for judges alone."""

import ast
import re
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
    "request_rules",
    "archive",
    "artefact",
    "mechanism",
    "serving",
    "phases",
    "evaluation",
    "reporting",
    "playground",
    "baselines",
    "systems",
)
METHOD = STAGES[1:6]
TRUTH = "ega_jax.data.market.clicks", "ega_jax.data.market.calibration"
MODULES = sorted(ROOT.rglob("*.py"))
COMMANDS = sorted((ROOT.parent / "experiments").rglob("*.py"))


def imports(path):
    """Modules of the package that a file imports, as dotted names."""
    for node in ast.walk(ast.parse(path.read_text())):
        yield from imports_of(node)


def imports_of(node):
    """What an import statement imports, as dotted names; nothing of other nodes."""
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
    names = ("auction", "judges", "observability", "off_policy", "response", "samples", "serving")
    judges = {("evaluation", f"{name}.py") for name in names}
    assert readers <= {("data", "market"), *judges}


def test_the_method_knows_nothing_of_files_and_flags():
    forbidden = ("orbax", "absl", "pyarrow", "grain", "tensorboardX", "pathlib", "json")
    for path in MODULES:
        if path.relative_to(ROOT).parts[0] in METHOD:
            found = [name for name in imports(path) if name.split(".")[0] in forbidden]
            assert not found, f"{path.name} imports {found}"


def test_no_module_imports_itself_in_a_circle():
    """Imports while types are checked do not count."""
    graph = {dotted_name(path): set(run_time_imports(path)) for path in MODULES}
    done, path = set(), []

    def visit(name):
        assert name not in path, " -> ".join([*path[path.index(name) :], name])
        if name in done:
            return
        path.append(name)
        for imported in graph[name]:
            for known in (imported, imported.rpartition(".")[0]):
                if known in graph and known != name:
                    visit(known)
                    break
        path.pop()
        done.add(name)

    for name in graph:
        visit(name)


def dotted_name(path):
    """The module's name as imports have it."""
    parts = ("ega_jax", *path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def run_time_imports(path):
    """Modules that a file imports when it is loaded."""
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield from imports_of(node)


def test_bodies_are_short():
    """No function has more than 40 lines beside its docstring."""
    long = []
    for path in [*MODULES, *COMMANDS]:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef) and (length := body_length(node)) > 40:
                long.append(f"{path.name}: {node.name} has {length}")
    assert not long, long


def body_length(node):
    """Lines of a function's body without its docstring."""
    body = node.body[1:] if ast.get_docstring(node) else node.body
    return body[-1].end_lineno - body[0].lineno + 1 if body else 0


def test_settings_are_not_looked_up_by_strings():
    pattern = re.compile(r"(settings|config)\[[\"\']")
    found = [path.name for path in MODULES if pattern.search(path.read_text())]
    assert not found
