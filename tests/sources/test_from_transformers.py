"""Models of transformers, made from small configs: equal to the class itself."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from prunepass.errors import ModelError
from prunepass.sources.model import LoadedModel, load_model

VIT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "image_size": 32,
    "patch_size": 8,
}
DINO = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "mlp_ratio": 2,
    "image_size": 42,
    "patch_size": 14,
}
TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "intermediate_size": 64,
    "vocab_size": 50,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
PAIR = {"text_config": TEXT, "vision_config": VIT}

# class, config class, config values, the output that is wanted
MODELS: list[tuple[str, str, dict[str, Any], str]] = [
    ("ViTForImageClassification", "ViTConfig", {**VIT, "num_labels": 5}, "logits"),
    ("ViTModel", "ViTConfig", VIT, "pooler_output"),
    ("DeiTForImageClassification", "DeiTConfig", VIT, "logits"),
    ("DeiTForImageClassificationWithTeacher", "DeiTConfig", VIT, "logits"),
    ("CLIPVisionModel", "CLIPVisionConfig", VIT, "pooler_output"),
    (
        "CLIPVisionModelWithProjection",
        "CLIPVisionConfig",
        {**VIT, "projection_dim": 24},
        "image_embeds",
    ),
    ("CLIPForImageClassification", "CLIPConfig", PAIR, "logits"),
    ("SiglipVisionModel", "SiglipVisionConfig", VIT, "pooler_output"),
    ("SiglipForImageClassification", "SiglipConfig", PAIR, "logits"),
    ("Dinov2Model", "Dinov2Config", DINO, "pooler_output"),
    ("Dinov2ForImageClassification", "Dinov2Config", DINO, "logits"),
    ("Dinov2WithRegistersModel", "Dinov2WithRegistersConfig", DINO, "pooler_output"),
    ("Dinov2WithRegistersForImageClassification", "Dinov2WithRegistersConfig", DINO, "logits"),
    ("BeitForImageClassification", "BeitConfig", VIT, "logits"),
    ("DINOv3ViTModel", "DINOv3ViTConfig", {**VIT, "num_register_tokens": 3}, "pooler_output"),
]


def build(name: str, config: str, values: dict[str, Any]) -> Any:
    torch.manual_seed(11)
    return getattr(transformers, name)(getattr(transformers, config)(**values)).eval()


def save(folder: Path, name: str, config: str, values: dict[str, Any]) -> Any:
    model = build(name, config, values)
    model.save_pretrained(folder)
    return model


@pytest.fixture
def vit(tmp_path: Path) -> Path:
    save(tmp_path, *MODELS[0][:3])
    return tmp_path


@pytest.mark.parametrize(("name", "config", "values", "output"), MODELS, ids=[m[0] for m in MODELS])
def test_it_equals_the_class_itself(
    tmp_path: Path, name: str, config: str, values: dict[str, Any], output: str
) -> None:
    model = save(tmp_path, name, config, values)
    loaded = load_model(f"hf/{tmp_path}")
    images = loaded.example(3)
    side = values.get("image_size", 32)
    assert images.shape == (3, 3, side, side)
    with torch.no_grad():
        expected = getattr(model(pixel_values=images), output)
        found = loaded.module(images)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert loaded.weights == "pretrained"
    assert loaded.fused_attention is None
    assert loaded.module.model.config._attn_implementation == "sdpa"


@pytest.mark.parametrize(("name", "width"), [("CLIP", 24), ("Siglip", 32)])
def test_a_pair_of_towers_gives_the_vision_tower(tmp_path: Path, name: str, width: int) -> None:
    values = {**PAIR, "projection_dim": 24} if name == "CLIP" else PAIR
    model = save(tmp_path, f"{name}Model", f"{name}Config", values)
    loaded = load_model(f"hf/{tmp_path}")
    images = loaded.example()
    with torch.no_grad():
        expected = model.get_image_features(images)
        expected = expected if isinstance(expected, torch.Tensor) else expected.pooler_output
        found = loaded.module(images)
    assert found.shape == (2, width)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)
    assert not any("text" in key for key in loaded.module.state_dict())


def test_a_checkpoint_without_a_pooler_gives_the_class_token(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = transformers.ViTConfig(**VIT)
    model = transformers.ViTModel(config, add_pooling_layer=False).eval()
    model.save_pretrained(tmp_path)
    for size in (None, 48):
        loaded = load_model(f"hf/{tmp_path}", image_size=size)
        images = loaded.example()
        with torch.no_grad():
            expected = model(images, interpolate_pos_encoding=size is not None)
            found = loaded.module(images)
        assert torch.allclose(found, expected.last_hidden_state[:, 0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("index", [0, 1, 3, 5, 7, 9, 11])
def test_other_picture_sizes_resample_the_position_embeddings(tmp_path: Path, index: int) -> None:
    name, config, values, output = MODELS[index]
    model = save(tmp_path, name, config, values)
    side = 56 if "patch_size" in values and values["patch_size"] == 14 else 48
    loaded = load_model(f"hf/{tmp_path}", image_size=side)
    images = loaded.example()
    assert images.shape[-2:] == (side, side)
    free = {} if "Dino" in name else {"interpolate_pos_encoding": True}
    with torch.no_grad():
        expected = getattr(model(pixel_values=images, **free), output)
        found = loaded.module(images)
    assert torch.allclose(found, expected, rtol=0, atol=1e-5)


def test_sizes_that_cannot_be_had(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    with pytest.raises(ModelError, match="patches of 8 pixels"):
        load_model(f"hf/{vit}", image_size=30)
    beit = tmp_path_factory.mktemp("beit")
    save(
        beit,
        "BeitForImageClassification",
        "BeitConfig",
        {**VIT, "use_relative_position_bias": True},
    )
    assert load_model(f"hf/{beit}").module(torch.zeros(1, 3, 32, 32)).shape == (1, 2)
    with pytest.raises(ModelError, match="2 tensors depend on the size"):
        load_model(f"hf/{beit}", image_size=48)


def test_a_config_alone_with_random_weights(tmp_path: Path) -> None:
    for name in ("ViT", "DeiT", "Dinov2"):
        values = DINO if name == "Dinov2" else VIT
        getattr(transformers, f"{name}Config")(**values).save_pretrained(tmp_path)
        torch.manual_seed(5)
        expected = torch.rand(2)
        torch.manual_seed(5)
        one = load_model(f"hf/{tmp_path}", weights="random")
        assert torch.equal(torch.rand(2), expected)
        other = load_model(f"hf/{tmp_path}", weights="random")
        assert one.weights == "random"
        images = one.example()
        assert torch.equal(one.module(images), other.module(images))
        assert one.module(images).std() > 0
        with pytest.raises(ModelError, match="--weights random") as caught:
            load_model(f"hf/{tmp_path}")
        assert "--weights FILE" in str(caught.value)


def test_pairs_from_a_config_alone(tmp_path: Path) -> None:
    transformers.CLIPConfig(**PAIR, projection_dim=24).save_pretrained(tmp_path)
    loaded = load_model(f"hf/{tmp_path}", weights="random")
    assert loaded.module(loaded.example()).shape == (2, 24)


def test_weights_from_a_file(vit: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    other = tmp_path_factory.mktemp("other")
    (other / "config.json").write_text((vit / "config.json").read_text())
    os.rename(vit / "model.safetensors", other / "mine.safetensors")
    loaded = load_model(f"hf/{vit}", weights=str(other / "mine.safetensors"))
    assert loaded.weights == "mine.safetensors"
    assert_same(loaded, build(*MODELS[0][:3]))


def test_weights_in_shards(tmp_path: Path) -> None:
    model = build(*MODELS[0][:3])
    model.save_pretrained(tmp_path, max_shard_size="20KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert_same(load_model(f"hf/{tmp_path}"), model)
    next(iter(tmp_path.glob("*.safetensors"))).unlink()
    with pytest.raises(ModelError, match="is missing"):
        load_model(f"hf/{tmp_path}")


def assert_same(loaded: LoadedModel, model: Any) -> None:
    images = loaded.example()
    with torch.no_grad():
        assert torch.equal(loaded.module(images), model(images).logits)


def test_weights_that_do_not_fit(vit: Path) -> None:
    state = load_file(vit / "model.safetensors")
    del state["classifier.bias"]
    state["vit.layernorm.weight"] = torch.ones(7)
    state["junk"] = torch.ones(1)
    save_file(state, vit / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError) as caught:
        load_model(f"hf/{vit}")
    assert caught.value.found == (
        "1 missing (classifier.bias); 1 unexpected (junk); "
        "1 of another shape (vit.layernorm.weight is 7, the model has 32)"
    )


def test_broken_weights(vit: Path) -> None:
    path = vit / "model.safetensors"
    state = load_file(path)
    whole = path.read_bytes()
    path.write_bytes(whole[:-100])
    with pytest.raises(ModelError, match="cannot read the weights file"):
        load_model(f"hf/{vit}")
    state["classifier.bias"][0] = float("nan")
    save_file(state, path, metadata={"format": "pt"})
    with pytest.raises(ModelError, match="NaN"):
        load_model(f"hf/{vit}")


def test_folders_that_are_no_models(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"no config\.json"):
        load_model(f"hf/{tmp_path}")
    with pytest.raises(ModelError, match="there is no folder"):
        load_model(f"hf/{tmp_path}/nowhere/at/all")
    for text in ("{", '{"model_type": "no-such-model"}', "{}"):
        (tmp_path / "config.json").write_text(text)
        with pytest.raises(ModelError, match="cannot read the config"):
            load_model(f"hf/{tmp_path}", weights="random")


@pytest.mark.parametrize(
    ("name", "config", "values"),
    [("BertModel", "BertConfig", TEXT), ("ViTMAEForPreTraining", "ViTMAEConfig", VIT)],
)
def test_models_that_are_no_vision_towers(
    tmp_path: Path, name: str, config: str, values: dict[str, Any]
) -> None:
    save(tmp_path, name, config, values)
    with pytest.raises(ModelError, match=name):
        load_model(f"hf/{tmp_path}")


@pytest.mark.parametrize(
    ("stored", "expected"),
    [
        (  # CLIP
            {
                "size": {"shortest_edge": 40},
                "do_center_crop": True,
                "crop_size": {"height": 32, "width": 32},
                "resample": 3,
                "image_mean": [0.4, 0.5, 0.6],
                "image_std": [0.1, 0.2, 0.3],
            },
            {"resize": 40, "fit": "crop", "mean": (0.4, 0.5, 0.6), "std": (0.1, 0.2, 0.3)},
        ),
        (  # an old file: plain numbers
            {"size": 40, "do_center_crop": True, "crop_size": 32, "resample": 2},
            {"resize": 40, "fit": "crop", "interpolation": "bilinear"},
        ),
        ({"size": 32, "resample": 2}, {"resize": 32, "fit": "squash", "interpolation": "bilinear"}),
        (  # DeiT
            {"size": {"height": 36, "width": 36}, "do_center_crop": True, "crop_size": 32},
            {"resize": 36, "fit": "squash"},
        ),
        ({"do_normalize": False}, {"mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)}),
        (  # pixels from 0 to 2, of which 1 is taken away
            {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
            {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)},
        ),
    ],
)
@pytest.mark.parametrize("nested", [False, True])
def test_the_preprocessing_comes_from_the_processor_file(
    vit: Path, stored: dict[str, Any], expected: dict[str, Any], nested: bool
) -> None:
    if nested:
        (vit / "processor_config.json").write_text(json.dumps({"image_processor": stored}))
    else:
        (vit / "preprocessor_config.json").write_text(json.dumps(stored))
    found = load_model(f"hf/{vit}").preprocessing
    assert (found.height, found.width) == (32, 32)
    for key, value in expected.items():
        assert getattr(found, key) == pytest.approx(value)


def test_a_processor_of_another_size_than_the_config(tmp_path: Path) -> None:
    model = save(tmp_path, "Dinov2Model", "Dinov2Config", DINO)
    stored = {"size": {"shortest_edge": 32}, "do_center_crop": True, "crop_size": 28}
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(stored))
    loaded = load_model(f"hf/{tmp_path}")
    images = loaded.example()
    assert images.shape == (2, 3, 28, 28)
    with torch.no_grad():
        expected = model(images).pooler_output
        assert torch.allclose(loaded.module(images), expected, rtol=0, atol=1e-5)
    program = torch.export.export(loaded.module, (images,), strict=False)
    assert not [node for node in program.graph.nodes if "upsample" in str(node.target)]


@pytest.mark.parametrize("text", ["{", '{"size": {"longest_edge": 3}}', '{"size": [1]}', "[]"])
def test_a_processor_file_that_cannot_be_read(vit: Path, text: str) -> None:
    (vit / "preprocessor_config.json").write_text(text)
    with pytest.raises(ModelError):
        load_model(f"hf/{vit}")


def test_settings_of_transformers_are_left_as_they_are(
    vit: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    logging = transformers.utils.logging
    before = logging.get_verbosity(), logging.is_progress_bar_enabled(), dict(os.environ)
    capfd.readouterr()
    load_model(f"hf/{vit}")
    assert capfd.readouterr() == ("", "")
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before[:2]
    assert dict(os.environ) == before[2]


def test_a_model_that_takes_more_than_pictures_is_refused(tmp_path: Path) -> None:
    config = transformers.Siglip2VisionConfig(**{**VIT, "num_patches": 16})
    config.architectures = ["Siglip2VisionModel"]
    config.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="takes more than pictures") as caught:
        load_model(f"hf/{tmp_path}", weights="random")
    assert "pixel_attention_mask" in str(caught.value.found)
