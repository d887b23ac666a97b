from __future__ import annotations

from pathlib import Path

import pytest
import torch

from prunepass.errors import ModelError, UsageError
from prunepass.sources.language import is_language, load_language
from tests.tiny_decoders import config_of, decoder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("hf") / "qwen"
    decoder("qwen2").save_pretrained(place)
    return place


def test_a_folder_of_a_language_model_is_told_from_others(folder: Path, tmp_path: Path) -> None:
    from transformers import ViTConfig

    assert is_language(f"hf/{folder}")
    ViTConfig().save_pretrained(tmp_path)
    assert not is_language(f"hf/{tmp_path}")
    assert not is_language("timm/vit_tiny_patch16_224")
    with pytest.raises(ModelError, match="no folder"):
        is_language("hf/./nowhere")


def test_weights_are_those_of_the_folder(folder: Path) -> None:
    loaded = load_language(f"hf/{folder}")
    assert loaded.weights == "model.safetensors"
    assert loaded.tokenizer is None
    assert loaded.module.config._attn_implementation == "sdpa"  # type: ignore[union-attr]
    for name, value in decoder("qwen2").state_dict().items():
        assert torch.equal(loaded.module.state_dict()[name], value), name


def test_dtype_and_random_weights(folder: Path, tmp_path: Path) -> None:
    config_of("llama").save_pretrained(tmp_path)
    loaded = load_language(f"hf/{tmp_path}", weights="random", dtype="bfloat16")
    assert loaded.weights == "random"
    assert {p.dtype for p in loaded.module.parameters()} == {torch.bfloat16}
    with pytest.raises(UsageError, match="no dtype called"):
        load_language(f"hf/{folder}", dtype="int8")
