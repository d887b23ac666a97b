"""The catalogue: every card builds, loads strictly and stays small; wrong names are explained."""

import dataclasses
import subprocess
import sys

import pytest
import torch
from prunepass.models import catalogue
from torch import nn

NAMES = list(catalogue.catalogue())


@pytest.mark.parametrize("name", NAMES)
def test_cards_are_filed_under_their_own_name_and_frozen(name: str) -> None:
    card = catalogue.catalogue()[name]
    assert card.name == name
    assert 0 < card.crop <= 1
    with pytest.raises(dataclasses.FrozenInstanceError):
        card.name = "other"  # type: ignore[misc]


def test_the_catalogue_cannot_be_written_to() -> None:
    with pytest.raises(TypeError):
        catalogue.catalogue()["other"] = catalogue.catalogue()[NAMES[0]]  # type: ignore[index]


@pytest.mark.parametrize("name", NAMES)
def test_models_load_in_eval_mode_and_float32(name: str) -> None:
    card = catalogue.catalogue()[name]
    model = catalogue.load(name, weights="pretrained" if card.weights else "random")
    assert isinstance(model, nn.Module)
    assert not any(module.training for module in model.modules())
    kinds = {v.dtype for v in model.state_dict().values() if v.is_floating_point()}
    assert kinds == {torch.float32}
    with torch.no_grad():
        logits = model(torch.rand(2, 3, card.image_size, card.image_size))
    assert logits.ndim == 2
    assert len(logits) == 2
    assert logits.isfinite().all()


@pytest.mark.parametrize("name", NAMES)
def test_random_weights_follow_the_global_seed(name: str) -> None:
    def all_values(seed: int) -> torch.Tensor:
        torch.manual_seed(seed)
        return torch.cat([p.flatten() for p in catalogue.load(name, weights="random").parameters()])

    values = all_values(3)
    assert torch.equal(values, all_values(3))
    assert not torch.equal(values, all_values(4))


@pytest.mark.parametrize("name", [n for n, c in catalogue.catalogue().items() if c.weights])
def test_shipped_weights_are_small_and_have_a_record(name: str) -> None:
    file = catalogue.catalogue()[name].weights
    assert file is not None
    path = catalogue.WEIGHTS_FOLDER / file
    assert path.stat().st_size <= 3_500_000
    assert path.with_suffix(".json").is_file()


def test_an_unknown_name_is_answered_with_the_known_ones() -> None:
    with pytest.raises(ValueError, match="unknown model 'tiny_vit'") as caught:
        catalogue.load("tiny_vit")
    assert all(name in str(caught.value) for name in NAMES)


def test_known_names_come_nearest_first() -> None:
    message = catalogue._unknown("vmi_tiny", ["deit_small", "vim_tiny", "vit_base"])
    assert message.endswith("one of vim_tiny, vit_base, deit_small")


def test_a_wrong_word_for_weights_is_refused() -> None:
    with pytest.raises(ValueError, match="'pretrained' or 'random'; found 'best'"):
        catalogue.load(NAMES[0], weights="best")  # type: ignore[arg-type]


def test_importing_the_catalogue_imports_nothing_heavy() -> None:
    script = (
        "import sys; import prunepass.models.catalogue, prunepass.models.pictures; "
        "print([n for n in ('timm', 'safetensors', 'PIL', 'transformers') if n in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
