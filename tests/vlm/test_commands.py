"""The command line on vision-language models: a folder of transformers in, answers out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import prunepass
from prunepass.__main__ import main
from prunepass.backends.tensorrt import missing
from prunepass.vlm.commands import shares
from tests.tiny_language import small_llava


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model folder with a tokenizer, as transformers writes it."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

    words = ["<pad>", "<s>", "</s>", "<image>", "<unk>", *(f"w{i}" for i in range(5, 40))]
    raw: Any = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=raw, unk_token="<unk>", pad_token="<pad>", eos_token="</s>",
        additional_special_tokens=["<image>"],
    )  # fmt: skip
    images = CLIPImageProcessor(
        size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32}, do_resize=True
    )
    processor: Any = LlavaProcessor(
        image_processor=images, tokenizer=tokenizer, patch_size=8, image_token="<image>",
        vision_feature_select_strategy="default",
    )  # fmt: skip
    place = tmp_path_factory.mktemp("hf") / "llava"
    small_llava().save_pretrained(place)
    processor.save_pretrained(place)
    return place


@pytest.fixture(scope="module")
def bundle(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("out") / "bundle"
    words = ["compile", f"hf/{folder}", "--method", "transprune", "--keep", "0.75,0.5,0.25"]
    assert main([*words, "--after", "1,2,3", "-o", str(out), "--quiet"]) == 0
    return out


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> Path:
    from PIL import Image

    path = tmp_path_factory.mktemp("pictures") / "cat.png"
    Image.radial_gradient("L").convert("RGB").save(path)
    return path


def test_a_bundle_answers(bundle: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["generate", str(bundle), "--image", str(picture), "--prompt", "w7 w9 w11"]
    assert main([*asked, "--max-new-tokens", "6", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert len(found["tokens"]) == 6
    assert found["text"].split()[0].startswith("w")
    assert [a - b for a, b in zip(found["kept"], found["kept"][1:], strict=False)] == [4, 4]
    for mapped in ([], ["--mapped"]):
        assert main([*asked, "--max-new-tokens", "6", *mapped]) == 0
        assert capsys.readouterr().out.strip() == found["text"].strip()


def test_a_report_of_a_bundle(
    bundle: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, pictures = tmp_path / "report.html", picture.parent
    words = ["report", str(bundle), "-o", str(out), "--images", str(pictures)]
    assert main(words) == 2
    assert "--prompt" in capsys.readouterr().err
    told = json.loads((bundle / "report.json").read_text())
    assert told["tokens"] == {
        "behind layer 1": [16, 12], "behind layer 2": [12, 8], "behind layer 3": [8, 4],
    }  # fmt: skip
    assert told["macs"] == sum(told["parts"]["compressed"].values())
    assert main([*words, "--prompt", "w7 w9", "--runs", "3", "--quiet"]) == 0
    text = out.read_text(encoding="utf-8")
    for section in ("tokens", "macs", "latency", "pictures", "plan", "versions"):
        assert f'<h2 id="{section}">' in text
    assert "image tokens that stay: 0.75, 0.5, 0.25" in text
    assert "to the first token, measured" in text
    assert f"{told['macs'] / told['macs_dense']:.1%}" in text
    assert text.count("<img") == 4


@pytest.mark.slow
def test_a_bundle_for_tensorrt_is_written_without_it(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if missing("tensorrt") is None:
        pytest.skip("TensorRT is here, and builds it")
    bundle = tmp_path / "bundle"
    words = ["compile", f"hf/{folder}", "--keep", "0.75,0.5,0.25", "--after", "1,2,3",
             "--decode-keep", "0.5", "--smallest", "0", "--backend", "tensorrt",
             "--profile", "1,2,4", "--profile-lengths", "1,16,128", "-o", str(bundle)]  # fmt: skip
    assert main(words) == 0
    said = capsys.readouterr().out
    assert "same answers, no gain" in said
    assert "not built yet" in said
    targets = [f"tensorrt=={version}" for version in ("8.5", "8.6", "10.0", "11.5")]
    assert not [f for f in prunepass.examine(bundle, targets=targets) if f.blocking]
    commands = (bundle / "prefill" / "trtexec.txt").read_text()
    assert "--maxShapes=inputs_embeds:4x128x32" in commands
    assert "image_positions:4x1x16" in commands
    assert main(["generate", str(bundle), "--prompt", "w7"]) == 3
    assert "this TensorRT engine is not built yet" in capsys.readouterr().err


@pytest.mark.slow
def test_a_smaller_picture_is_a_method(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compile", f"hf/{folder}", "--method", "downsample", "--keep"]
    assert main([*words, "0.5,0.25", "-o", str(tmp_path / "bundle"), "--quiet"]) == 1
    assert "takes tokens out once" in capsys.readouterr().err
    assert not (tmp_path / "bundle").exists()
    out = [*words, "0.25", "-o", str(tmp_path / "bundle"), "--json", "--backend", "eager"]
    assert main(out) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["method"] == "downsample"
    assert found["image_tokens"] == [4] * 5
    asked = ["generate", str(tmp_path / "bundle"), "--prompt", "w7", "--device"]
    assert main([*asked, "cuda"]) == 2
    assert "do not run on 'cuda'" in capsys.readouterr().err


def test_text_alone_is_answered_too(bundle: Path, capsys: pytest.CaptureFixture[str]) -> None:
    asked = ["generate", str(bundle), "--prompt", "w7 w9", "--max-new-tokens", "3", "--json"]
    assert main(asked) == 0
    assert json.loads(capsys.readouterr().out)["kept"] == []


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["--method", "transprunes"], 2, "no method for vision-language models called"),
        (["--keep", "0.5"], 1, "each pruning layer needs a share"),
        (["--keep", "0.5,a"], 2, "no list of shares"),
        (["--keep", "highest"], 1, "no plan called"),
        (["--keep", "0.5,0.4,1.5"], 1, "must be a fraction"),
        (["--after", "1,2,9"], 1, "image tokens cannot go at"),
        (["--flops", "0.5"], 2, "is a vision-language model"),
        (["--batch", "4"], 2, "takes any batch"),
        (["--backend", "onnxx"], 2, "backend"),
    ],
)
def test_wrong_words_are_told_in_three_lines(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], code: int,
    message: str,
) -> None:  # fmt: skip
    out = tmp_path / "bundle"
    assert main(["compile", f"hf/{folder}", *words, "-o", str(out)]) == code
    told = capsys.readouterr().err.strip().splitlines()
    assert message in told[0]
    assert 2 <= len(told) <= 3
    assert not out.exists()


def test_a_picture_that_cannot_be_read(
    bundle: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = sorted(p.stat().st_mtime_ns for p in bundle.rglob("*"))
    assert main(["generate", str(bundle), "--image", str(tmp_path / "no.jpg"), "--prompt", "w5"])
    assert "no.jpg" in capsys.readouterr().err
    assert sorted(p.stat().st_mtime_ns for p in bundle.rglob("*")) == before


def test_options_of_the_other_kind_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["compile", "prunepass/tiny_vit_patch8_96", "--after", "2", "-o", str(tmp_path / "b")]
    assert main(words) == 2
    assert "model of pictures alone" in capsys.readouterr().err


def test_a_bundle_is_not_replaced_unasked(
    folder: Path, bundle: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compile", f"hf/{folder}", "-o", str(bundle)]) == 2
    assert "exists" in capsys.readouterr().err


def test_shares_of_the_command_line() -> None:
    assert shares(None) is None
    assert shares("high") == "high"
    assert shares("0.5,0.25") == (0.5, 0.25)
