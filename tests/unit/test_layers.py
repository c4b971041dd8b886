"""Imports go downward only, and siblings do not import each other (CONTRIBUTING.md)."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import atlas

PACKAGE = Path(atlas.__file__).parent
# A module may import from lower layers and from its own name, never from another name of its layer.
LAYERS = (
    ("config", "allocator"),
    ("kernels",),
    ("refusals", "components", "environment", "arguments"),
    ("composition",),
    ("help", "resuming"),
    ("ops",),
    ("models", "data", "telemetry"),
    ("probes", "training", "report", "decisions"),
    ("starting", "closing", "folders"),
    ("build",),
    ("run",),
    ("sweeping", "acceptance"),
    ("train", "gate", "niah", "decide", "generate"),
    ("__init__",),
)
LAYER_OF = {name: index for index, names in enumerate(LAYERS) for name in names}
FILES = sorted(PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Modules that a file imports; type-checking and late imports count as well."""
    nodes = list(ast.walk(ast.parse(path.read_text(encoding="utf-8"))))
    plain = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return plain | {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_downward(path: Path) -> None:
    own = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
    below_atlas = {module.split(".")[1] for module in imports(path) if module.startswith("atlas.")}
    assert {name for name in below_atlas - {own} if LAYER_OF[name] >= LAYER_OF[own]} == set()


def test_settings_and_report_import_no_torch() -> None:
    light = [PACKAGE / f"{name}.py" for name in ("__init__", "refusals", "components", "composition", "help")]
    packages = [path for name in ("config", "report", "decisions") for path in (PACKAGE / name).rglob("*.py")]
    with_torch = {
        path.name for path in [*light, *packages] if any(module.split(".")[0] == "torch" for module in imports(path))
    }
    assert with_torch == set()
