"""The documents: tables and pages as they are generated, links that lead somewhere, the site."""

from __future__ import annotations

import importlib.util
import pkgutil
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "models" / "README.md",
             *sorted((ROOT / "docs").glob("*.md"))]  # fmt: skip


@pytest.mark.parametrize("script", ["table", "pages"])
def test_what_is_generated_is_up_to_date(script: str) -> None:
    command = [sys.executable, str(ROOT / "scripts" / script), "--check"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_links_lead_somewhere(path: Path) -> None:
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = [t for t in re.findall(r"\]\(([^)\s]+)\)", text) if "://" not in t]
    for target in targets:
        assert (path.parent / target.split("#")[0]).exists(), target


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: path.name)
def test_files_and_names_that_are_told_exist(path: Path) -> None:
    """`prunepass/tiny_llava` is a model, so in that folder only what ends in .py counts."""
    text = path.read_text(encoding="utf-8")
    files = re.findall(r"(?<![\w./-])(?:scripts|tests|docs|models)/[\w./-]*\w", text)
    files += re.findall(r"(?<![\w./-])prunepass/[\w/]+\.py\b", text)
    lost = {name for name in files if "NAME" not in name and not (ROOT / name).exists()}
    assert lost == set()
    for dotted in re.findall(r"`(prunepass(?:\.\w+)+)", text):
        pkgutil.resolve_name(dotted)


def test_every_room_is_told() -> None:
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    told = set(re.findall(r"^    (\w+)/ ", text, re.MULTILINE))
    assert told == {path.parent.name for path in (ROOT / "prunepass").glob("*/__init__.py")}
    beside = set(re.findall(r"`(\w+\.py)`", text))
    assert {name for name in beside if not (ROOT / "prunepass" / name).exists()} == set()


def test_every_method_and_kind_of_error_is_told() -> None:
    from prunepass.planners.image_methods import IMAGE_METHODS
    from prunepass.planners.input_methods import INPUT_METHODS
    from prunepass.planners.methods import METHODS

    told = (ROOT / "docs" / "methods.md").read_text(encoding="utf-8")
    for table in (METHODS, IMAGE_METHODS, INPUT_METHODS):
        for row in table.values():
            assert f"### `{row.name}`" in told
            assert row.source in told
    errors = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    for kind in ("UsageError", "ModelError", "PlanError", "UnsupportedGraph", "BackendError"):
        assert f"## {kind}, exit code" in errors


def test_every_error_has_a_mend() -> None:
    text = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    ours, _, internal = text.partition("## InternalError")
    assert [line for line in ours.splitlines() if line.endswith("|  |")] == []
    assert internal


@pytest.mark.slow
def test_the_site_builds_without_a_warning(tmp_path: Path) -> None:
    if importlib.util.find_spec("mkdocs") is None:
        pytest.skip("mkdocs is not installed: pip install 'prunepass[docs]'")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert done.returncode == 0, done.stderr
    pages = list(tmp_path.rglob("*.html"))
    assert len(pages) >= len(list((ROOT / "docs").glob("*.md")))
    for page in pages:
        loaded = re.findall(r'<(?:script|link|img)[^>]*(?:src|href)="(https?://[^"]+)"',
                            page.read_text(encoding="utf-8"))  # fmt: skip
        assert [url for url in loaded if "canonical" not in url] == [], page
