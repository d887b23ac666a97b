"""Weights files: what loads, and every way a file can be wrong."""

import pickle
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from prunepass.errors import ModelError, UsageError
from prunepass.sources.weights import apply_weights, fitted, read_weights, seeded, weights_file


def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))


class Trap:
    """A pickle that would run code."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (exec, ("raise SystemExit('code of the file ran')",))


@pytest.mark.parametrize("wrap", [None, "state_dict", "model"])
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.", "module._orig_mod."])
def test_torch_files_load(tmp_path: Path, wrap: str | None, prefix: str) -> None:
    source, target = model(), model()
    state = {prefix + key: value for key, value in source.state_dict().items()}
    path = tmp_path / "w.pth"
    torch.save({wrap: state, "epoch": 3} if wrap else state, path)
    apply_weights(target, path)
    assert all(
        torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True)
    )


def test_safetensors_of_half_precision_load(tmp_path: Path) -> None:
    source, target = model().half(), model()
    save_file(source.state_dict(), tmp_path / "w.safetensors")
    apply_weights(target, tmp_path / "w.safetensors")
    assert torch.equal(target[0].weight, source[0].weight.float())


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".pth", ".bin"])
@pytest.mark.parametrize("kept", [0, 3, 60, -20])
def test_truncated_files(tmp_path: Path, suffix: str, kept: int) -> None:
    path = tmp_path / f"w{suffix}"
    if suffix == ".safetensors":
        save_file(model().state_dict(), path)
    else:
        torch.save(model().state_dict(), path)
    path.write_bytes(path.read_bytes()[:kept] if kept else b"")
    with pytest.raises(ModelError, match=f"cannot read the weights file .*w{suffix}"):
        read_weights(path)


def test_text_under_the_name_of_weights(tmp_path: Path) -> None:
    for suffix in (".safetensors", ".pt"):
        path = tmp_path / f"w{suffix}"
        path.write_text("<!DOCTYPE html><title>404</title>" * 9)
        with pytest.raises(ModelError, match="cannot read the weights file"):
            read_weights(path)


def test_pickles_with_code_are_refused_and_never_run(tmp_path: Path) -> None:
    torch.save({"state_dict": model().state_dict(), "args": Trap()}, tmp_path / "zip.pth")
    (tmp_path / "plain.bin").write_bytes(pickle.dumps(Trap()))
    torch.save(model(), tmp_path / "whole.pt")
    for name in ("zip.pth", "plain.bin", "whole.pt"):
        with pytest.raises(ModelError, match=f"{name} is refused") as caught:
            read_weights(tmp_path / name)
        assert "save_file" in (caught.value.fix or "")
        assert caught.value.found
        assert len(str(caught.value)) < 600
    with pytest.raises(ModelError, match="exec"):
        read_weights(tmp_path / "zip.pth")


@pytest.mark.parametrize(
    ("stored", "found"),
    [([1, 2], "a list"), ({"a": 1}, "'a': int"), ({"model": {"x": "y"}}, "'x': str"), (3, "a int")],
)
def test_files_without_a_state_dict(tmp_path: Path, stored: object, found: str) -> None:
    torch.save(stored, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=found):
        read_weights(tmp_path / "w.pt")


def test_an_empty_state_dict(tmp_path: Path) -> None:
    torch.save({}, tmp_path / "w.pt")
    with pytest.raises(ModelError, match="no tensors"):
        read_weights(tmp_path / "w.pt")


def test_keys_that_do_not_fit_are_counted_and_three_of_them_named(tmp_path: Path) -> None:
    state = model().state_dict()
    for key in ("0.weight", "0.bias", "1.weight", "1.bias"):
        del state[key]
    state["extra"] = torch.ones(1)
    state["2.bias"] = torch.ones(7)
    save_file(state, tmp_path / "w.safetensors")
    target = model()
    before = [value.clone() for value in target.parameters()]
    with pytest.raises(ModelError) as caught:
        apply_weights(target, tmp_path / "w.safetensors")
    assert caught.value.found == (
        "4 missing (0.weight, 0.bias, 1.weight, ...); 1 unexpected (extra); "
        "1 of another shape (2.bias is 7, the model has 2)"
    )
    assert all(torch.equal(a, b) for a, b in zip(before, target.parameters(), strict=True))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_values_that_are_no_numbers(tmp_path: Path, value: float) -> None:
    state = model().state_dict()
    state["2.weight"][1, 1] = value
    save_file(state, tmp_path / "w.safetensors")
    with pytest.raises(ModelError, match=r"1 of 6 tensors \(2.weight\)"):
        read_weights(tmp_path / "w.safetensors")


def test_a_conversion_may_rename_and_reshape_but_not_resample() -> None:
    expected = {"new": (2, 3), "kept": (4,)}
    state = {"old": torch.ones(2, 3), "kept": torch.ones(4, 1)}

    def convert(given: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"new": given["old"], "kept": given["kept"].reshape(-1)[:4]}

    assert set(fitted(expected, state, name="w", convert=convert)) == {"new", "kept"}
    state["kept"] = torch.ones(9)
    with pytest.raises(ModelError, match="kept is 9, the model has 4"):
        fitted(expected, state, name="w", convert=convert)
    with pytest.raises(ModelError, match="1 missing"):  # a conversion that fails is no excuse
        fitted(expected, {"kept": torch.ones(4)}, name="w", convert=convert)


def test_the_words_of_the_command_line(tmp_path: Path) -> None:
    assert weights_file("pretrained") is None
    assert weights_file("random") is None
    path = tmp_path / "w.PT"
    path.touch()
    assert weights_file(str(path)) == path
    with pytest.raises(UsageError, match="'rnadom'"):
        weights_file("rnadom")
    with pytest.raises(UsageError, match="npz"):
        weights_file("w.npz")
    with pytest.raises(ModelError, match="nothing at that path"):
        weights_file(str(tmp_path / "missing.pt"))
    (tmp_path / "folder.bin").mkdir()
    with pytest.raises(ModelError, match="a folder"):
        weights_file(str(tmp_path / "folder.bin"))


def test_random_weights_do_not_touch_the_callers_numbers() -> None:
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    with seeded():
        first = model()
    assert torch.equal(torch.rand(3), expected)
    with seeded():
        second = model()
    assert torch.equal(first[0].weight, second[0].weight)
