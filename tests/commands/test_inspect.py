"""What is listed of a language model, and what is said of what cannot be listed."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunepass.__main__ import main
from prunepass.analyse.flops import macs
from prunepass.planners.sparsity import plan_inputs
from tests.tiny_decoders import captured, decoder
from tests.tiny_language import small_llava


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hf") / "llama"
    decoder("llama").save_pretrained(place)
    return place


def test_the_linear_layers_of_a_language_model_are_listed(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", f"hf/{folder}"]) == 0
    told = capsys.readouterr().out
    for said in ("14 linear layers that can read fewer inputs", "block[1].mlp.down",
                 "wina, teal, cats, r-sparse", "no: below --smallest 1048576",
                 f"prunepass compile hf/{folder} --method wina --keep 0.5"):  # fmt: skip
        assert said in told
    made = plan_inputs(captured("llama"), keep=0.5, smallest=0)
    plan = tmp_path / "plan.json"
    plan.write_text(made.to_json())
    assert main(["inspect", f"hf/{folder}", "--plan", str(plan), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["macs"] == macs(captured("llama")) == data["counts"]["macs"]
    assert data["fingerprint"] == made.fingerprint
    assert [layer["site"] for layer in data["layers"]] == [step.site for step in made.steps]
    first = data["layers"][0]
    assert (first["macs"], first["large"]) == (first["inputs"] * first["outputs"], False)
    assert first["methods"] == ["wina", "teal", "r-sparse"]
    saved = data["counts_with_plan"]["macs"] / data["macs"]
    assert saved == pytest.approx(made.notes["macs_ratio"], abs=1e-4)


@pytest.mark.parametrize("command", ["inspect", "plan", "layers", "compile"])
def test_a_bundle_is_no_model(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "bundle.json").write_text("{}")
    output = ["-o", str(tmp_path / "new")] if command in ("plan", "compile") else []
    budget = ["--flops", "0.6"] if output else []
    assert main([command, str(tmp_path), *budget, *output]) == 2
    error = capsys.readouterr().err.strip()
    assert f"{tmp_path} is a bundle, and no model" in error
    assert f"try:   prunepass report {tmp_path}" in error
    assert len(error.splitlines()) == 3


@pytest.mark.parametrize("command", ["plan", "layers"])
def test_commands_without_language_models_point_elsewhere(
    command: str, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ["--flops", "0.6", "-o", str(tmp_path / "p.json")] if command == "plan" else []
    assert main([command, f"hf/{folder}", *more]) == 2
    error = capsys.readouterr().err.strip()
    assert f"{command} does not take language models" in error
    assert f"try:   prunepass inspect hf/{folder} lists what" in error
    assert "compile --method wina --keep 0.5" in error
    assert len(error.splitlines()) == 3


def test_a_vision_language_model_is_pointed_elsewhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    small_llava().save_pretrained(tmp_path)
    capsys.readouterr()
    assert main(["inspect", f"hf/{tmp_path}"]) == 2
    error = capsys.readouterr().err.strip()
    assert "inspect does not take vision-language models" in error
    assert f"prunepass layers hf/{tmp_path} scores its layers" in error
    assert "compile --method transprune -o DIR" in error
    assert len(error.splitlines()) == 3
