from __future__ import annotations

import json
from pathlib import Path

import pytest

from prunepass.__main__ import main
from prunepass.backends.tensorrt import missing
from tests.tiny_decoders import decoder, texts


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hf") / "llama"
    decoder("llama").save_pretrained(place)
    return place


def test_compile_bench_and_generate(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "texts.jsonl"
    lines.write_text("\n".join(map(json.dumps, texts(3))))
    bundle = str(tmp_path / "bundle")
    made = ["compile", f"hf/{folder}", "--method", "wina", "--keep", "0.5", "--backend", "eager",
            "--smallest", "0", "--texts", str(lines), "-o", bundle]  # fmt: skip
    assert main(made) == 0
    told = capsys.readouterr().out
    assert "14 read fewer inputs, 0 stay dense" in told
    assert "allocation        greedy" in told
    assert main(["bench", bundle, "--batch", "1", "--runs", "3"]) == 0
    assert "speed-up" in capsys.readouterr().out
    assert main(["bench", bundle, "--batch", "8", "1", "--runs", "3", "--json"]) == 0
    caught = capsys.readouterr()
    measured = json.loads(caught.out)
    assert measured["macs_ratio"] == 1.0
    assert [row["macs_ratio"] < 1.0 for row in measured["batches"]] == [False, True]
    assert "(1.000) at batch 8" in caught.err
    report = str(tmp_path / "report.html")
    assert main(["report", bundle, "--runs", "3", "-o", report, "--quiet"]) == 0
    text = Path(report).read_text(encoding="utf-8")
    for said in (
        "50% of the inputs",
        "a token",
        "as fast, measured",
        "block[1].mlp.down",
        "decoded alone: layers read fewer inputs for at most 1 at once",
    ):
        assert said in text
    assert main(["report", bundle, "--images", str(tmp_path), "-o", "r.html"]) == 2
    assert "sees no picture" in capsys.readouterr().err
    assert main(["generate", bundle, "--tokens", "5,6,7", "--max-new-tokens", "3"]) == 0
    assert all(part.isdecimal() for part in capsys.readouterr().out.strip().split(","))
    for word, value in (("--mapped", []), ("--device", ["cuda"])):
        assert main(["generate", bundle, "--tokens", "5", word, *value]) == 2
        assert "leave it out" in capsys.readouterr().err
    assert main(made) == 2  # it is there already
    assert "exists" in capsys.readouterr().err


@pytest.mark.slow
def test_the_planner_decides_what_is_read(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = tmp_path / "texts.jsonl"
    lines.write_text("\n".join(map(json.dumps, texts(8))))
    command = ["compile", f"hf/{folder}", "--floor", "agreement>=0.5", "--backend", "eager",
               "--smallest", "0", "--texts", str(lines), "-o", str(tmp_path / "b")]  # fmt: skip
    assert main(command) == 0
    assert "on texts the search did not see" in capsys.readouterr().out
    plan = json.loads((tmp_path / "b" / "plan.json").read_text())
    assert plan["notes"]["macs_ratio"] < 0.95
    assert plan["notes"]["floor"] == "agreement>=0.5"


@pytest.mark.slow
@pytest.mark.parametrize("backend", [["--backend", "tensorrt"], ["--opset", "17", "--portable"]])
def test_a_bundle_without_operators_of_ours(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], backend: list[str]
) -> None:
    bundle = tmp_path / "b"
    made = ["compile", f"hf/{folder}", "--keep", "0.5", "--smallest", "0", "-o", str(bundle)]
    assert main([*made, *backend]) == 0
    said = capsys.readouterr().out
    assert "same answers, no gain" in said
    assert not list(bundle.rglob("operators.so"))
    assert main(["doctor", str(bundle), "--target", "tensorrt==8.5", "--target",
                 "tensorrt==11.5", "--target", "onnxruntime==1.29"]) == 0  # fmt: skip
    asked = ["generate", str(bundle), "--tokens", "5,6,7", "--max-new-tokens", "3"]
    if "tensorrt" not in backend:
        assert main(asked) == 0
        return
    if missing("tensorrt") is None:
        pytest.skip("TensorRT is here, and builds it")
    assert "not built yet" in said
    assert (bundle / "compressed" / "trtexec.txt").is_file()
    capsys.readouterr()
    assert main(asked) == 3
    assert "this TensorRT engine is not built yet" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["--keep", "0.5"], 1, "--smallest 0"),
        ([], 2, "neither --keep nor --plan"),
        (["--keep", "half"], 2, "is no share"),
        (["--keep", "0.5", "--flops", "0.5"], 2, "is a language model"),
        (["--keep", "0.5", "--batch", "4"], 2, "any batch is taken"),
        (["--keep", "2", "--smallest", "0"], 1, "linear layers read, in (0, 1]"),
        (["--keep", "0.001", "--smallest", "0"], 1, "between 1 and 32 inputs"),
        (["--keep", "0.5", "--method", "tome"], 2, "no method of sparse activation"),
        (["--keep", "0.5", "--dtype", "int4"], 2, "no dtype called"),
        (["--keep", "0.5", "--dtype", "bfloat16", "--backend", "onnx"], 2, "--dtype float32, or"),
        (["--keep", "0.5", "--texts", "nowhere.jsonl"], 1, "cannot read texts"),
        (["--keep", "0.5", "--drop-layers", "1"], 2, "--drop-layers"),
        (["--keep", "0.5", "--target", "flops<=0.6"], 2, "nothing else may"),
        (["--target", "flops<=0.6"], 2, "needs texts"),
        (["--floor", "kl<=0.1", "--rotate", "--texts", "t.jsonl"], 2, "does not rotate"),
        (["--keep", "0.5", "--opset", "17"], 2, "is no setting of --backend eager"),
        (["--keep", "0.5", "--workspace", "2"], 2, "--backend tensorrt"),
    ],
)
def test_wrong_words_are_answered_in_three_lines(
    words: list[str], code: int, told: str, folder: Path, tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    out = str(tmp_path / "b")
    command = ["compile", f"hf/{folder}", "--backend", "eager", "-o", out, *words]
    assert main(command) == code
    error = capsys.readouterr().err.strip()
    assert told in error
    assert len(error.splitlines()) <= 3
    assert not Path(out).exists()


def test_texts_of_words_need_a_tokenizer(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "texts.txt"
    path.write_text("once upon a time\n")
    command = ["compile", f"hf/{folder}", "--keep", "0.5", "--texts", str(path), "-o",
               str(tmp_path / "b")]  # fmt: skip
    assert main(command) == 2
    assert "no list of token numbers" in capsys.readouterr().err


def test_quantised_weights_are_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = json.loads((folder / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "gptq", "bits": 4}
    (tmp_path / "config.json").write_text(json.dumps(config))
    command = ["compile", f"hf/{tmp_path}", "--weights", "random", "--keep", "0.5", "-o",
               str(tmp_path / "b")]  # fmt: skip
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "quantised weights" in error
    assert "gptq" in error


def test_pictures_are_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compile", "timm/vit_tiny_patch16_224", "--weights", "random", "--texts", "a", "-o",
             str(tmp_path / "b")]  # fmt: skip
    assert main(words) == 2
    assert "--texts" in capsys.readouterr().err


def test_methods_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods"]) == 0
    told = capsys.readouterr().out
    assert "of text alone" in told
    assert main(["methods", "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert [m["name"] for m in data["input_methods"]] == ["wina", "teal", "cats", "r-sparse"]
