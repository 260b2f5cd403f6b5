import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

import mtl_dist
from mtl_dist.config.recipe import Recipe
from mtl_dist.models.multitask import MultitaskTransformer

ROOT = Path(__file__).parents[2]
MODULES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for path in sorted(ROOT.glob("mtl_dist/**/*.py"))
}
SOURCES = [path for folder in ("mtl_dist", "launch", "tests", "benchmarks") for path in ROOT.glob(f"{folder}/**/*.py")]
PACKAGES = (
    *("", "config", "distributed", "data", "tasks", "schedule", "models", "engines", "activation_cache", "checkpoint"),
    *("tracking", "report", "inspection", "training", "inference", "quickstart", "cluster", "cli"),
)
"""In the order in which they build on each other; the first is what lies beside the packages."""
MAX_FILE_LINES, MAX_FUNCTION_LINES = 500, 90
FOREIGN = re.compile(
    r"(?<![\w.])/(root|work|opt|home/\w+|Users/\w+)/"  # folders of one machine
    r"|\b(pypi|npmjs|docker|pythonhosted|anaconda)\.(org|com|io)\b|\b(download|registry|index)\.\w+\.(org|com|io)\b"
)


def imports(path: Path) -> Iterator[str]:
    """Modules of the package that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in MODULES)
        elif isinstance(node, ast.ImportFrom):
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            yield from names & MODULES.keys()
            if not names <= MODULES.keys() and node.module in MODULES:
                yield node.module


def test_modules_import_each_other_in_no_circle() -> None:
    graph = {module: set(imports(path)) for module, path in MODULES.items()}
    assert {"mtl_dist.checkpoint.storage", "mtl_dist.engines.ddp"} <= graph["mtl_dist.training.run"]
    TopologicalSorter(graph).prepare()  # raises CycleError, which names the circle


def package_of(module: str) -> str:
    name = [*module.split("."), ""][1]
    return name if (ROOT / "mtl_dist" / name).is_dir() else ""


def test_packages_import_only_those_before_them() -> None:
    upward = [
        f"{module} imports {other}"
        for module, path in MODULES.items()
        if module not in ("mtl_dist", "mtl_dist.__main__")
        for other in imports(path)
        if PACKAGES.index(package_of(other)) > PACKAGES.index(package_of(module))
    ]
    assert not upward


def test_each_package_says_what_it_does_and_does_nothing_more_when_imported() -> None:
    for package in PACKAGES[1:]:
        tree = ast.parse((ROOT / "mtl_dist" / package / "__init__.py").read_text(encoding="utf-8"))
        assert ast.get_docstring(tree), package
        assert len(tree.body) == 1, package


def test_files_and_functions_are_short() -> None:
    long = []
    for path in SOURCES:
        text = path.read_text(encoding="utf-8")
        name = str(path.relative_to(ROOT))
        places = {name: (text.count("\n"), MAX_FILE_LINES)}
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                places[f"{name}: {node.name}"] = (lines, MAX_FUNCTION_LINES)
        long += [f"{place}: {lines} lines" for place, (lines, limit) in places.items() if lines > limit]
    assert not long


@pytest.mark.parametrize(
    "module",
    [
        "mtl_dist",
        "mtl_dist.config.recipe",
        "mtl_dist.config.load",
        "mtl_dist.quickstart.assets",
        "mtl_dist.cli.report",
        "launch.on_node",
        "launch.submit",
    ],
)
def test_what_needs_no_torch_does_not_load_it(module: str) -> None:
    code = f"import sys, {module}; print(*{{'torch', 'transformers', 'datasets', 'accelerate'}} & sys.modules.keys())"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_the_package_offers_its_main_classes() -> None:
    assert mtl_dist.MultitaskTransformer is MultitaskTransformer
    assert mtl_dist.Recipe is Recipe
    assert all(hasattr(mtl_dist, name) for name in mtl_dist.__all__)
    with pytest.raises(AttributeError, match="'mtl_dist' has no attribute 'Multitask'"):
        mtl_dist.Multitask  # noqa: B018


@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a git work tree")
def test_no_file_names_a_machines_folder_or_a_package_registry() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    found = []
    for name in listed.stdout.splitlines():
        path = ROOT / name
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines() if path.is_file() else []
        found += [f"{name}:{number}: {line}" for number, line in enumerate(lines, 1) if FOREIGN.search(line)]
    assert not found
