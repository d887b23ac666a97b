"""What an engine is asked is what its program does."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch.export import ExportedProgram

from prunepass.backends.told_tokens import telling
from prunepass.bundle import read_plan
from prunepass.engines import load_engines
from prunepass.errors import BackendError, ModelError
from prunepass.seeing.look import Looker
from prunepass.seeing.paint import left, panel, sheet
from tests.kept_indices import with_kept


@pytest.mark.parametrize("name", ["merged", "dropped"])
def test_an_engine_tells_the_tokens_its_program_keeps(
    name: str, program: ExportedProgram, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(name)
    steps = [s for s in read_plan(folder / "plan.json").steps if s.rule != "unread"]
    images = torch.randn(3, 3, 24, 30)
    _, *kept = with_kept(program, steps)(images)
    manifest, engines = load_engines(folder)
    asked = telling(manifest.backend, folder / "compressed")
    told = asked(images)
    for step, right in zip(steps, kept, strict=True):
        assert torch.equal(told[f"{step.site}:reduce.kept"], right)
    merges = [n for n in asked.names if n.endswith((".dropped", ".target"))]
    assert len(merges) == (2 * len(steps) if name == "merged" else 0)
    # To be asked changes nothing: the answer of the model is that of its engine.
    torch.testing.assert_close(
        asked.engine(images)[0], engines["compressed"](images)[0], rtol=1e-5, atol=1e-5
    )


def test_a_compiled_package_cannot_be_asked(tmp_path: Path) -> None:
    with pytest.raises(BackendError, match="cannot be asked") as caught:
        telling("aot_inductor", tmp_path / "compressed")
    assert "--plan" in str(caught.value)


def test_patches_are_counted_and_painted(merged: Path, dropped: Path, pictures: Path) -> None:
    file = sorted(pictures.iterdir())[0]
    for folder in (merged, dropped):
        look = Looker(folder)(file)
        assert look.grid == (4, 5)
        assert [left(stage) for stage in look.stages] == [s.after - 1 for s in look.stages]
        merges = folder == merged
        assert all(stage.merges == merges for stage in look.stages)
        assert all((stage.owner < 0).any() != merges for stage in look.stages)
        plain, last = panel(look, None), panel(look, look.stages[-1])
        assert plain.shape == last.shape
        same = (plain == last).all(2).mean()
        assert 0.05 < same < 0.95
        assert sheet(look).width > 2 * plain.shape[1]


def test_the_class_token_in_the_middle_is_no_patch(tmp_path: Path, pictures: Path) -> None:
    import prunepass
    from tests.tiny_ssm import small_vim

    model = small_vim().float().eval()
    size = 40
    images = torch.randn(2, 3, size, size)
    folder = tmp_path / "bundle"
    prunepass.compile(
        model, (images,), method="ssm-align", keep=0.6, at=(1,), backend="eager", folder=folder,
        preprocessing={"height": size, "width": size, "resize": size, "interpolation": "bicubic",
                       "mean": [0.5] * 3, "std": [0.5] * 3, "fit": "squash"},
    )  # fmt: skip
    look = Looker(folder)(sorted(pictures.iterdir())[0])
    patches = look.grid[0] * look.grid[1]
    assert all(len(stage.owner) == patches == stage.before - 1 for stage in look.stages[:1])
    assert [left(stage) for stage in look.stages] == [s.after - 1 for s in look.stages]


def test_a_bundle_of_before_says_so(merged: Path, tmp_path: Path) -> None:
    import shutil

    folder = tmp_path / "old"
    shutil.copytree(merged, folder)
    report = json.loads((folder / "report.json").read_text())
    del report["always_kept"]
    (folder / "report.json").write_text(json.dumps(report))
    with pytest.raises(ModelError, match="compiled before"):
        Looker(folder)
