"""Who may import whom (design, section 5): any other import fails here."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1] / "prunepass"
FILES = sorted(ROOT.rglob("*.py"))

# Room -> (rank, what of prunepass it may import besides its own folder).
_ANALYSIS = {"errors", "ops", "plans", "records", "rules", "graph", "analyse", "kernels"}
_RUNNING = {"agreement", "errors", "ops", "records", "graph.meta", "kernels", "user_cache"}
ROOMS: dict[str, tuple[int, set[str]]] = {
    "errors": (0, set()),
    "progress": (0, set()),
    "stages": (0, set()),
    "agreement": (0, set()),
    "terminal": (1, {"progress"}),
    "html": (1, set()),
    "user_cache": (0, set()),
    "ops": (0, set()),
    "models": (1, {"ops"}),
    "plans": (1, {"errors"}),
    "records": (1, {"errors"}),
    "rules": (1, {"errors"}),
    "kernels": (2, {"errors", "rules.weight_aware", "user_cache"}),
    "graph": (2, {"errors"}),
    "analyse": (3, {"errors", "ops", "records", "graph", "kernels"}),
    "capturing": (4, _ANALYSIS),
    "calibrate": (4, _ANALYSIS),
    "passes": (4, _ANALYSIS),
    # What is calibrated is what will run: a rotated program, where that is planned.
    "planners": (5, _ANALYSIS | {"passes.rotate_inputs"}),
    "importance": (5, _ANALYSIS | {"calibrate"}),
    "sources": (4, {"errors", "models"}),
    "sparsify_weights": (6, _ANALYSIS | {"calibrate", "importance", "planners"}),
    "apply": (5, _ANALYSIS | {"passes"}),
    "specialise": (5, {"errors", "graph"}),
    "backends": (6, _RUNNING | {"graph.edit", "graph.parts"}),
    "measure": (6, _RUNNING),
    "report": (7, {"bundle_files", "errors", "plans", "records"}),
    "bundle_files": (5, {"errors"}),
    "bundle": (6, {"bundle_files", "errors", "plans", "records"}),
    "doctor": (6, {"errors", "ops", "graph", "kernels"}),
    "engines": (7, _RUNNING | {"backends", "bundle", "bundle_files", "doctor", "specialise"}),
    # Planners that run drafts on pictures and engines on this machine.
    "search": (
        7,
        _ANALYSIS
        | {
            "passes",
            "planners",
            "measure",
            "backends",
            "specialise",
            "apply",
            "calibrate",
            "importance",
            "user_cache",
        },
    ),
    # From here on, everything of a lower rank may be imported.
    "compiler": (8, set()),
    "downsample": (9, set()),
    "serving": (9, set()),
    "verifying": (10, set()),
    "vlm": (9, set()),
    "layer_plot": (9, set()),
    "language": (10, set()),
    "benchmark": (11, set()),
    "seeing": (12, set()),
    "commands": (13, set()),
    "__main__": (15, set()),
    "__init__": (14, set()),
}
FREE = 8
HEAVY = {"onnx", "onnxruntime", "onnxscript", "tensorrt", "torch_tensorrt", "timm", "transformers",
         "torchvision", "PIL", "rich", "triton", "safetensors", "huggingface_hub"}  # fmt: skip

# What Triton compiles finds its names among those of its file, which others import where needed.
COMPILED = {"kernels/gated_rows_triton.py": "triton"}


def room(parts: tuple[str, ...]) -> str:
    """The key of `ROOMS` that a dotted name belongs to."""
    both = ".".join(parts[:2])
    return both if both in ROOMS else (parts[0] if parts else "__init__")


def imports(tree: ast.AST) -> list[tuple[str, int]]:
    """(dotted name, line) of everything imported anywhere in a file."""
    found = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found += [(alias.name, node.lineno) for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: a relative import"
            found += [(f"{node.module}.{alias.name}", node.lineno) for alias in node.names]
    return found


def allowed(importer: str, target: tuple[str, ...]) -> bool:
    """Whether a file of a room may import `prunepass.<target>`."""
    rank, may = ROOMS[importer]
    other = room(target)
    if other == importer:
        return True
    known = other in ROOMS and ROOMS[other][0] < rank
    return known and (rank >= FREE or other in may or ".".join(target[:2]) in may)


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(ROOT)) for f in FILES])
def test_imports_point_downwards(path: Path) -> None:
    here = path.relative_to(ROOT).with_suffix("").parts
    importer = room(here)
    assert importer in ROOMS, f"{importer} has no rank: give it one here and in the design"
    wrong = []
    for name, line in imports(ast.parse(path.read_text())):
        top, *rest = name.split(".")
        if top == "prunepass" and not allowed(importer, tuple(rest)):
            wrong.append(f"line {line}: {name}")
        if importer == "errors" and top not in sys.stdlib_module_names:
            wrong.append(f"line {line}: errors imports {name}")
        if importer == "rules" and top not in {"torch", "prunepass", *sys.stdlib_module_names}:
            wrong.append(f"line {line}: a rule imports {name}")
    assert wrong == []


@pytest.mark.parametrize("path", FILES, ids=[str(f.relative_to(ROOT)) for f in FILES])
def test_heavy_packages_are_imported_where_they_are_needed(path: Path) -> None:
    tree = ast.parse(path.read_text())
    at_top = ast.Module([n for n in tree.body if isinstance(n, (ast.Import, ast.ImportFrom))], [])
    names = [name for name, _ in imports(at_top)]
    mine = COMPILED.get(str(path.relative_to(ROOT)))
    assert not {name.split(".")[0] for name in names} & HEAVY - {mine}
    for file in COMPILED:
        where = "prunepass." + file.removesuffix(".py").replace("/", ".")
        assert not [name for name in names if name.startswith(where)]


def test_the_check_itself() -> None:
    assert allowed("passes", ("rules", "table"))
    assert allowed("backends", ("graph", "meta", "labels"))
    assert not allowed("backends", ("graph", "splice", "insert_call"))
    assert not allowed("backends", ("analyse", "sites"))
    assert not allowed("graph", ("analyse", "sites"))
    assert not allowed("rules", ("plans", "Step"))
    assert not allowed("passes", ("planners", "uniform"))
    assert not allowed("planners", ("search", "schedule"))
    assert not allowed("planners", ("passes", "table"))
    assert allowed("planners", ("passes", "rotate_inputs", "rotate_inputs"))
    assert not allowed("compiler", ("commands", "build"))
    assert not allowed("errors", ("plans",))
    assert allowed("__main__", ("apply", "apply_plan"))
    assert len(FILES) > 40


def test_every_room_is_packaged() -> None:
    import tomllib

    told = tomllib.loads((ROOT.parent / "pyproject.toml").read_text())["tool"]["setuptools"]
    rooms = {f"prunepass.{path.parent.name}" for path in ROOT.glob("*/__init__.py")}
    assert rooms | {"prunepass", "prunepass.models"} == set(told["packages"])
