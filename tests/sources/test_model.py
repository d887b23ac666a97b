"""Models by name: timm and our own, their weights, other input sizes, and the real ViT-Tiny."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from prunepass.errors import ModelError, UsageError
from prunepass.sources.model import load_model
from prunepass.sources.pictures import find_pictures
from tests.data import shared_data

OURS = "prunepass/tiny_vit_patch8_96"


def timm_model(name: str = "test_vit", **options: object) -> torch.nn.Module:
    import timm

    torch.manual_seed(1)
    model: torch.nn.Module = timm.create_model(name, **options).eval()
    return model


def test_a_model_of_timm_with_random_weights() -> None:
    from timm.layers import use_fused_attn

    torch.manual_seed(9)
    expected = torch.rand(3)
    torch.manual_seed(9)
    one = load_model("timm/test_vit", weights="random")
    assert torch.equal(torch.rand(3), expected)
    other = load_model("timm/test_vit", weights="random")
    assert one.spec == "timm/test_vit"
    assert one.weights == "random"
    assert one.fused_attention is bool(use_fused_attn())
    assert not any(module.training for module in one.module.modules())
    assert not any(parameter.requires_grad for parameter in one.module.parameters())
    images = one.example(3)
    assert images.shape == (3, 3, 160, 160)
    assert images.dtype == torch.float32
    assert torch.equal(images, one.example(3))
    assert torch.equal(one.module(images), other.module(images))


def test_a_weights_file_of_a_timm_model(tmp_path: Path) -> None:
    model = timm_model()
    save_file(model.state_dict(), tmp_path / "mine.safetensors")
    torch.save({"state_dict": model.state_dict()}, tmp_path / "mine.pth")
    for name in ("mine.safetensors", "mine.pth"):
        loaded = load_model("timm/test_vit", weights=str(tmp_path / name))
        images = loaded.example()
        assert loaded.weights == name
        with torch.no_grad():
            assert torch.equal(loaded.module(images), model(images))


def test_a_checkpoint_in_the_family_s_original_names(tmp_path: Path) -> None:
    model = timm_model()
    state = dict(model.state_dict())
    weight = state["patch_embed.proj.weight"]
    state["patch_embed.proj.weight"] = weight.flatten(1)  # patches as rows, as some were published
    save_file(state, tmp_path / "rows.safetensors")
    loaded = load_model("timm/test_vit", weights=str(tmp_path / "rows.safetensors"))
    assert torch.equal(loaded.module.state_dict()["patch_embed.proj.weight"], weight)


@pytest.mark.parametrize(
    ("name", "side"),
    [("test_vit", 96), ("test_vit4", 96), ("test_vit_relpos", 96), ("eva02_tiny_patch14_224", 98)],
)
def test_another_input_size_resamples_the_position_tables(
    tmp_path: Path, name: str, side: int
) -> None:
    model = timm_model(name)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    loaded = load_model(f"timm/{name}", weights=str(tmp_path / "w.safetensors"), image_size=side)
    assert (loaded.preprocessing.height, loaded.preprocessing.width) == (side, side)
    assert loaded.preprocessing.resize == int(side / model.pretrained_cfg["crop_pct"])
    model.set_input_size((side, side))
    images = loaded.example()
    with torch.no_grad():
        assert torch.allclose(loaded.module(images), model(images), rtol=0, atol=1e-5)


def test_sizes_that_cannot_be_had(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match="patches of 16 pixels"):
        load_model("timm/test_vit", weights="random", image_size=100)
    with pytest.raises(ModelError, match="test_resnet cannot be built for pictures of 96 x 96"):
        load_model("timm/test_resnet", weights="random", image_size=96)
    with pytest.raises(UsageError):
        load_model("timm/test_vit", weights="random", image_size=0)
    save_file(timm_model("test_vit2").state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match="do not fit"):
        load_model("timm/test_vit", weights=str(tmp_path / "w.safetensors"), image_size=96)


def test_weights_of_another_model_or_size_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file(timm_model("test_vit2").state_dict(), path)
    with pytest.raises(ModelError, match="do not fit the model"):
        load_model("timm/test_vit", weights=str(path))
    save_file(timm_model(img_size=96).state_dict(), path)
    with pytest.raises(ModelError, match=r"1 of another shape \(pos_embed is 1 x 37"):
        load_model("timm/test_vit", weights=str(path))  # timm alone would resample, silently


def test_unknown_names_are_answered_with_the_nearest() -> None:
    with pytest.raises(ModelError, match="timm has no model 'vit_tinny_patch16_224'") as caught:
        load_model("timm/vit_tinny_patch16_224", weights="random")
    assert (caught.value.fix or "").startswith("one of vit_tiny_patch16_224, ")
    assert len((caught.value.fix or "").split(", ")) == 5
    with pytest.raises(ModelError, match="no weights 'augreg'") as caught:
        load_model("timm/vit_tiny_patch16_224.augreg", weights="random")
    assert "vit_tiny_patch16_224.augreg_in21k" in (caught.value.fix or "")
    with pytest.raises(ModelError, match="prunepass has no model 'tiny_vit'") as caught:
        load_model("prunepass/tiny_vit", weights="random")
    assert OURS in (caught.value.fix or "")


@pytest.mark.parametrize("spec", ["", "resnet18", "timm", "timm/", "hf/", "tim/vit_tiny", "/x"])
def test_other_words_are_usage_errors_that_name_the_four_forms(spec: str) -> None:
    with pytest.raises(UsageError) as caught:
        load_model(spec)
    for form in ("timm/NAME", "hf/FOLDER-or-ID", "prunepass/NAME", "path/to/file.py:function"):
        assert form in str(caught.value)


def test_wrong_words_for_weights_are_refused_before_anything_is_built() -> None:
    with pytest.raises(UsageError, match="'rnadom'"):
        load_model("timm/test_vit", weights="rnadom")
    with pytest.raises(ModelError, match="nothing at that path"):
        load_model("timm/test_vit", weights="nowhere.pt")


def test_a_model_of_timm_without_weights() -> None:
    with pytest.raises(ModelError, match="--weights random") as caught:
        load_model("timm/levit_256d")
    assert "--weights FILE" in str(caught.value)
    assert "timm names no weights" in str(caught.value)


def test_our_own_models(tmp_path: Path) -> None:
    one = load_model(OURS, weights="random", crop=0.75)
    assert one.weights == "random"
    assert one.preprocessing.height == 96
    assert one.preprocessing.resize == 128
    images = one.example()
    assert images.shape == (2, 3, 96, 96)
    save_file(one.module.state_dict(), tmp_path / "w.safetensors")
    other = load_model(OURS, weights=str(tmp_path / "w.safetensors"))
    assert other.weights == "w.safetensors"
    assert torch.equal(one.module(images), other.module(images))
    small = load_model(OURS, weights=str(tmp_path / "w.safetensors"), image_size=64)
    assert small.preprocessing.resize == 64
    assert small.module(small.example()).shape == one.module(images).shape
    with pytest.raises(ModelError, match="patches of 8 pixels"):
        load_model(OURS, weights="random", image_size=60)


def test_our_own_trained_weights() -> None:
    from prunepass.models import catalogue

    file = catalogue.catalogue()[OURS.partition("/")[2]].weights
    if file is None or not (catalogue.WEIGHTS_FOLDER / file).is_file():
        with pytest.raises(ModelError, match="--weights random"):
            load_model(OURS)
        pytest.skip(f"models/weights/{file} is not there: only the refusal was tested")
    assert load_model(OURS).weights == "pretrained"


OFFLINE = """
import os, sys, time
from pathlib import Path
import torch
from safetensors.torch import save_file
from prunepass.errors import ModelError
from prunepass.sources.model import load_model
import timm, transformers

environment = dict(os.environ)
for spec in ("timm/test_vit", "hf/google/vit-base-patch16-224", "hf/no-such-model"):
    start = time.perf_counter()
    try:
        load_model(spec)
        sys.exit("loaded")
    except ModelError as error:
        assert "cannot be reached" in str(error), error
        assert "--weights random" in str(error) and "--weights FILE" in str(error), error
    assert time.perf_counter() - start < 7, spec
    assert dict(os.environ) == environment

# What an earlier download left is used without asking the network.
def cache(repo):
    folder = Path(os.environ["HF_HOME"], "hub", "models--" + repo.replace("/", "--"))
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("abc")
    (folder / "snapshots" / "abc").mkdir(parents=True)
    return folder / "snapshots" / "abc"

model = timm.create_model("test_vit").eval()
save_file(model.state_dict(), cache(model.pretrained_cfg["hf_hub_id"]) / "model.safetensors")
loaded = load_model("timm/test_vit")
assert loaded.weights == "pretrained"
assert torch.equal(loaded.module(loaded.example()), model(loaded.example()))
small = load_model("timm/test_vit", image_size=96)
assert small.module(small.example()).shape == (2, 1000)

config = transformers.ViTConfig(
    hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64, image_size=32
)
folder = cache("someone/vit")
config.save_pretrained(folder)
assert load_model("hf/someone/vit", weights="random").weights == "random"
try:
    load_model("hf/someone/vit")
    sys.exit("loaded")
except ModelError as error:
    assert "cannot be reached" in str(error), error
transformers.ViTForImageClassification(config).save_pretrained(folder)
assert load_model("hf/someone/vit").weights == "pretrained"
print("done")
"""


def test_without_a_network_pretrained_weights_are_refused_within_seconds(tmp_path: Path) -> None:
    nowhere = "http://127.0.0.1:9"  # a proxy that nobody runs: no request leaves the machine
    environment = {
        **{key: value for key, value in os.environ.items() if key.lower() != "no_proxy"},
        **dict.fromkeys(("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY"), nowhere),
        "HF_HOME": str(tmp_path),
    }
    done = subprocess.run(
        [sys.executable, "-c", OFFLINE],
        capture_output=True,
        text=True,
        env=environment,
        timeout=120,
    )
    assert done.stdout.strip().endswith("done"), done.stderr


def test_importing_the_sources_imports_nothing_heavy() -> None:
    script = (
        "import sys; import prunepass.sources.model, prunepass.sources.pictures; "
        "heavy = ('timm', 'transformers', 'PIL', 'safetensors', 'torchvision', 'huggingface_hub'); "
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr


def test_the_real_vit_tiny_on_real_pictures() -> None:
    data = shared_data()
    if data is None:
        pytest.skip("no real weights: neither PRUNEPASS_DATA nor ../shared/data is a folder")
    loaded = load_model(
        "timm/vit_tiny_patch16_224",
        weights=str(data / "weights" / "vit_tiny_patch16_224.safetensors"),
    )
    pictures = find_pictures(data / "images").take(100)
    right = 0
    with torch.no_grad():
        for images, labels in pictures.batches(loaded.preprocessing, 25):
            right += int((loaded.module(images).argmax(-1) == labels).sum())
    # On all 500 it is 81.2 %, checked by hand: a wrong mean alone costs 30 points.
    assert abs(right - 85) <= 1
