from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from prunepass import language
from prunepass.backends.aot_inductor import AotInductorBackend
from prunepass.errors import ModelError, PlanError, PrunepassError, UsageError
from prunepass.kernels.native import has_native
from prunepass.language.bench import bench_decoding
from prunepass.language.manifest import LanguageManifest, read_language_manifest
from prunepass.planners.sparsity import plan_inputs
from tests.tiny_decoders import captured, config_of, decoder, texts


def made(folder: Path, **options: Any) -> language.LanguageBundle:
    options = {"keep": 0.5, "smallest": 0, "backend": "eager"} | options
    if "plan" in options:
        del options["keep"], options["smallest"]
    return language.compile(decoder("llama"), folder=folder, **options)


def windowed(width: int) -> Any:
    """A Phi-3 whose layers attend to the last `width` tokens."""
    import transformers

    config = config_of("phi3")
    config.sliding_window = width
    torch.manual_seed(0)
    return transformers.Phi3ForCausalLM._from_config(config, attn_implementation="sdpa").eval()


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> language.LanguageBundle:
    return made(tmp_path_factory.mktemp("bundles") / "one")


def test_dense_engine_goes_on_as_the_model_does(bundle: language.LanguageBundle) -> None:
    assert bundle.folder is not None
    both = language.load(bundle.folder, parts=("dense", "compressed"))
    prompt = texts(1)[0]
    with torch.no_grad():
        numbers = torch.tensor([prompt])
        for _ in range(6):
            logits = decoder("llama")(input_ids=numbers, use_cache=False).logits
            numbers = torch.cat([numbers, logits[:, -1:].argmax(-1)], dim=1)
    right = numbers[0, len(prompt) :].tolist()
    stop = right.index(2) if 2 in right else len(right)
    assert both.generate(prompt, max_new_tokens=6, part="dense") == right[:stop]


def test_windows_bound_the_context(tmp_path: Path) -> None:
    """Phi-3 and Mistral attend to a window; behind it their programs would say something else."""
    model = windowed(24)
    made = language.compile(model, keep=0.5, smallest=0, backend="eager", folder=tmp_path / "b")
    assert made.manifest.context == 24
    with pytest.raises(UsageError, match="24 fit"):
        made.generate(texts(1, tokens=24)[0], max_new_tokens=1)
    with pytest.raises(PlanError, match="24 fit"):
        language.compile(
            model, keep=0.5, calibration=texts(1, tokens=25), backend="eager",
            folder=tmp_path / "c",
        )  # fmt: skip
    prompt = texts(2, tokens=24)
    with torch.no_grad():
        right = model(input_ids=torch.tensor(prompt), use_cache=False).logits[:, -1]
    both = language.load(tmp_path / "b", parts=("dense",))
    found = both.begin(prompt, room=0, part="dense").logits
    torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-4)


def test_prompts_of_a_batch_answer_as_alone(bundle: language.LanguageBundle) -> None:
    """Also a batch that grows: its rows are more than pay, so it is dense, and correct."""
    assert bundle.folder is not None
    both = language.load(bundle.folder, parts=("dense", "compressed"))
    prompts = [texts(1, tokens=9)[0], texts(2, tokens=4)[1]]
    talk = both.begin(prompts, room=4)
    dense = both.begin(prompts, room=4, part="dense")
    alone = [both.begin([p], room=4, part="dense") for p in prompts]
    torch.testing.assert_close(talk.logits, dense.logits, rtol=1e-4, atol=1e-4)
    for row, one in enumerate(alone):
        torch.testing.assert_close(talk.logits[row], one.logits[0], rtol=1e-4, atol=1e-4)
    more = torch.tensor([[5], [6]])
    both.extend(talk, more)
    both.extend(dense, more, part="dense")
    torch.testing.assert_close(talk.logits, dense.logits, rtol=1e-4, atol=1e-4)


def test_the_record_says_what_was_done(bundle: language.LanguageBundle) -> None:
    assert bundle.folder is not None
    record = json.loads((bundle.folder / "record.json").read_text())
    assert record["sparse"]["block[0].attention.k"] == {"rule": "weight-norm", "keep": 0.5}
    assert record["dense"] == {}
    assert bundle.manifest.macs_ratio == pytest.approx(record["notes"]["macs_ratio"], abs=2e-3)


def test_macs_of_a_token_are_those_of_its_batch(bundle: language.LanguageBundle) -> None:
    """More tokens than the steps' rows take dense products: nothing is saved there."""
    told = bundle.manifest
    ((rows, macs),) = told.macs_above
    assert macs == told.macs_dense
    assert told.macs_at(rows) == told.macs < told.macs_at(rows + 1) == told.macs_dense
    assert told.macs_ratio_at(8) == 1.0
    assert bundle.folder is not None
    found = bench_decoding(bundle.folder, batches=(rows, rows + 1), runs=3)
    assert [row["macs_ratio"] for row in found["batches"]] == [told.macs_ratio, 1.0]


def test_a_compressed_engine_is_no_larger_than_the_dense_one(tmp_path: Path) -> None:
    place = made(tmp_path / "b", method="teal").folder
    assert place is not None
    dense, compressed = (
        sum(x.numel() for x in torch.export.load(place / part / "model.pt2").state_dict.values())
        for part in ("dense", "compressed")
    )
    assert compressed == dense


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["onnx", "aot_inductor"])
def test_other_backends_say_the_same(
    backend: str, bundle: language.LanguageBundle, tmp_path: Path
) -> None:
    other = made(tmp_path / "b", backend=backend)
    prompt = texts(1)[0]
    one, two = bundle.begin([prompt], room=3), other.begin([prompt], room=3)
    for number in (4, 9):
        torch.testing.assert_close(one.logits, two.logits, rtol=1e-3, atol=1e-3)
        for side, talk in ((bundle, one), (other, two)):
            side.extend(talk, torch.tensor([[number]]))
    torch.testing.assert_close(one.logits, two.logits, rtol=1e-3, atol=1e-3)
    found = bench_decoding(tmp_path / "b", batches=(1, 2), runs=3)
    assert [row["batch"] for row in found["batches"]] == [1, 2]
    assert found["batches"][0]["speedup"] > 0


@pytest.mark.gpu
def test_a_bundle_for_a_gpu_says_the_same(tmp_path: Path, bundle: language.LanguageBundle) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    there = made(tmp_path / "there", backend=AotInductorBackend(device="cuda"))
    assert there.folder is not None
    assert there.device.type == "cuda"
    prompt = texts(1)[0]
    right = bundle.generate(prompt, max_new_tokens=6)
    assert there.generate(prompt, max_new_tokens=6) == right
    assert there.begin([prompt], room=1).cache.layers[0].is_cuda
    assert language.load(there.folder).device.type == "cuda"
    assert bench_decoding(there.folder, runs=3)["batches"][0]["dense_ms"] > 0


def test_a_plan_made_before_is_carried_out(tmp_path: Path) -> None:
    plan = plan_inputs(captured("llama"), method="teal", keep=0.25, smallest=0)
    found = made(tmp_path / "b", plan=plan)
    assert found.manifest.method == "teal"
    assert found.manifest.macs_ratio == pytest.approx(plan.notes["macs_ratio"], abs=2e-3)


def test_bfloat16(tmp_path: Path) -> None:
    if not has_native(torch.bfloat16):
        pytest.skip("no C++ compiler: bfloat16 runs as embedding bags, which is slow")
    model = decoder("llama", torch.bfloat16)
    found = language.compile(model, keep=0.5, smallest=0, backend="eager", folder=tmp_path / "b")
    assert found.manifest.dtype == "bfloat16"
    assert len(found.generate(texts(1)[0], max_new_tokens=3)) <= 3


def test_bfloat16_is_refused_before_a_model_is_captured(tmp_path: Path) -> None:
    stages: list[str] = []
    with pytest.raises(UsageError, match="cannot compute in bfloat16") as caught:
        language.compile(
            decoder("llama", torch.bfloat16), keep=0.5, backend="onnx", folder=tmp_path / "b",
            on_stage=stages.append,
        )  # fmt: skip
    assert "--backend aot_inductor" in str(caught.value)
    assert stages == list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": None}, "needs to know what stays"),
        ({"calibration": [[1] * 65]}, "longer than the model's context"),
        ({"calibration": []}, "nothing to calibrate on"),
        ({"smallest": 1 << 20}, "no linear layer of this model gains"),
        ({"backend": "onxx"}, "unknown backend"),
        ({"method": "nothing"}, "no method of sparse activation"),
    ],
)
def test_refusals_leave_nothing(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    with pytest.raises(PrunepassError, match=message) as caught:
        made(tmp_path / "b", **options)
    assert len(str(caught.value).splitlines()) == 3
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("prompt", "room", "message"),
    [
        ([], 4, "a prompt has no token"),
        ([1] * 62, 4, "longer than the model's context"),
        ([1, 40], 4, "tokens that the model does not know"),
        ("words", 4, "no tokenizer"),
    ],
)
def test_prompts_that_cannot_be_answered(
    bundle: language.LanguageBundle, prompt: Any, room: int, message: str
) -> None:
    with pytest.raises(UsageError, match=message):
        bundle.generate(prompt, max_new_tokens=room)


def test_bench_wants_numbers_in_range(bundle: language.LanguageBundle) -> None:
    assert bundle.folder is not None
    with pytest.raises(UsageError, match="at least 3 runs"):
        bench_decoding(bundle.folder, runs=2)


def test_manifest_survives_and_damage_is_told(
    bundle: language.LanguageBundle, tmp_path: Path
) -> None:
    path = tmp_path / "bundle.json"
    path.write_text(bundle.manifest.to_json())
    assert read_language_manifest(tmp_path) == bundle.manifest
    data = json.loads(bundle.manifest.to_json())
    for key, value in (
        ("layers", 0),
        ("dtype", "float33"),
        ("cache", [1]),
        ("schema", 9),
        ("macs_above", [[1]]),
    ):
        path.write_text(json.dumps({**data, key: value}))
        with pytest.raises(ModelError, match=r"damaged|another version"):
            read_language_manifest(tmp_path)
    path.write_text("{}")
    with pytest.raises(ModelError, match="not the bundle of a language model"):
        language.load(tmp_path)
    assert isinstance(bundle.manifest, LanguageManifest)


def test_an_engine_that_is_missing_is_named(
    bundle: language.LanguageBundle, tmp_path: Path
) -> None:
    (tmp_path / "bundle.json").write_text(bundle.manifest.to_json())
    with pytest.raises(ModelError, match="lacks an engine"):
        language.load(tmp_path)


def test_no_keep_and_no_plan() -> None:
    with pytest.raises(PlanError):
        language.compile(decoder("llama"), folder="nowhere", backend="eager")
