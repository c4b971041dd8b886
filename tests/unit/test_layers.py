"""Imports go downward only, and siblings do not import each other (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest

import atlas

PACKAGE = Path(atlas.__file__).parent
COMMANDS = {
    "__init__",
    "train",
    "niah",
    "generate",
    "export",
    "evaluate",
    "harness",
    "prepare",
}  # nothing else stands at the package root
# A package may import from lower layers and from itself, never from another one of its layer.
LAYERS = (
    ("config",),
    ("kernels", "parallel"),
    ("ops",),
    ("models", "data", "telemetry", "checkpoint"),
    ("probes", "training", "report", "pretrained", "preparation"),
    ("runs",),
    ("sweeps",),
    ("train", "niah", "generate", "export", "evaluate", "harness", "prepare"),
    ("__init__",),
)
LAYER_OF = {name: index for index, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(source: str) -> set[str]:
    """Modules that a source imports; type-checking and late imports count as well.

    `from atlas import x` imports `atlas.x`; only the version is no module.
    """
    nodes = list(ast.walk(ast.parse(source)))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module == "atlas":
            found |= {f"atlas.{alias.name}" for alias in node.names if alias.name != "__version__"}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
    return found


def test_imports_go_downward() -> None:
    upward = set()
    for path in FILES:
        own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        modules = imports(path.read_text(encoding="utf-8"))
        others = {module.split(".")[1] for module in modules if "atlas." in module} - {own}
        upward |= {(str(path), name) for name in others if LAYER_OF[name] >= LAYER_OF[own]}
    assert upward == set()


def test_from_atlas_import_counts_as_an_import() -> None:
    assert imports("from atlas import runs, __version__\nimport atlas.data.text") == {"atlas.runs", "atlas.data.text"}


def test_the_package_root_holds_commands_only() -> None:
    assert {path.stem for path in PACKAGE.glob("*.py")} == COMMANDS


def test_settings_and_report_import_no_torch() -> None:
    light = [
        PACKAGE / "__init__.py",
        *(path for name in ("config", "report") for path in (PACKAGE / name).rglob("*.py")),
    ]
    with_torch = {
        path.name
        for path in light
        if any(module.split(".")[0] == "torch" for module in imports(path.read_text(encoding="utf-8")))
    }
    assert with_torch == set()


@pytest.mark.parametrize("name", ["runs", "training"])
def test_the_map_of_a_package_names_all_of_its_files(name: str) -> None:
    tree = ast.parse((PACKAGE / name / "__init__.py").read_text(encoding="utf-8"))
    files = {path.stem for path in (PACKAGE / name).glob("*.py")} - {"__init__"}
    assert files - set(re.findall(r"\w+", ast.get_docstring(tree) or "")) == set()
