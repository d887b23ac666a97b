"""Every kind of bundle against every target, as the table of docs/serving.md tells it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from prunepass.backends.onnx import OnnxBackend
from prunepass.backends.onnx_legal import NEWEST, OLDEST, Target
from prunepass.doctor.findings import Finding, examine
from tests.doctor.bundles import ENGINES, KINDS

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"
OPSETS = (OLDEST, NEWEST)
QUICK = {("ViT", "tome"), ("smaller picture", "compressed"), ("Vim", "compressed"),
         ("language model", "wina")}  # fmt: skip
"""What is examined by default for TensorRT at opset 17; the rest is for where there is time, as a
vision-language model takes a minute to be taken apart. See tests/vlm/test_examined.py for it."""
CASES = [
    pytest.param(
        kind, engine, target, opset, id=f"{kind}, {engine}, {target}, {opset}",
        marks=() if (kind, engine) in QUICK and target == "tensorrt" and opset == OLDEST
        else pytest.mark.slow,
    )
    for kind, names in ENGINES.items()
    for engine in names
    for target in ("onnxruntime", "tensorrt")
    for opset in OPSETS
]  # fmt: skip


def told() -> dict[str, dict[str, tuple[int, ...]]]:
    """Kind -> target of the doctor -> opsets that the page says pass."""
    table = PAGE.read_text(encoding="utf-8").split("<!-- passes -->")[1].split("<!-- /passes")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in table.splitlines()
        if line.startswith("|") and "---" not in line
    ]
    head, *body = rows
    found: dict[str, dict[str, tuple[int, ...]]] = {}
    for kind, *cells in body:
        for column, cell in zip(head[1:], cells, strict=True):
            name, numbers = re.fullmatch(r"(\w+) (.+)", column.replace(" ", " ")).groups()  # type: ignore[union-attr]
            for number in numbers.split(", "):
                opsets = tuple(int(opset) for opset in re.findall(r"\d+", cell))
                found.setdefault(kind, {})[f"{name.lower()}=={number}"] = opsets
    return found


def blocking(folder: Path, target: str) -> list[Finding]:
    return [finding for finding in examine(folder, targets=(target,)) if finding.blocking]


def test_the_page_tells_of_every_kind_and_target() -> None:
    table = told()
    assert set(table) == set(KINDS)
    targets = {f"onnxruntime==1.{minor}" for minor in (30, 31, 32)}
    targets |= {
        f"tensorrt=={version}" for version in ("8.5", "8.6", "10.0", "10.13", "11.0", "11.5")
    }
    for row in table.values():
        assert set(row) == targets
        assert all(OLDEST in opsets for opsets in row.values())


@pytest.mark.parametrize(("kind", "engine", "target", "opset"), CASES)
def test_a_bundle_passes_where_the_page_says_so(
    tmp_path: Path, kind: str, engine: str, target: Target, opset: int
) -> None:
    program = KINDS[kind]()[engine]
    OnnxBackend(opset=opset, target=target).write(program, tmp_path)
    for name, opsets in told()[kind].items():
        if name.startswith(target) and opset in opsets:
            assert blocking(tmp_path, name) == []


@pytest.mark.parametrize("kind", [pytest.param(k, marks=pytest.mark.slow) for k in KINDS])
def test_what_the_page_leaves_out_is_accused(tmp_path: Path, kind: str) -> None:
    """An exception that is none any more has to leave the page."""
    left = [name for name, opsets in told()[kind].items() if NEWEST not in opsets]
    assert all(name.startswith("tensorrt==8.") for name in left)
    for engine, program in KINDS[kind]().items():
        (tmp_path / engine).mkdir()
        OnnxBackend(opset=NEWEST, target="tensorrt").write(program, tmp_path / engine)
    for name in left:
        assert blocking(tmp_path, name)
