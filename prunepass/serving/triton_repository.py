"""A model repository that NVIDIA Triton serves as it is: dense and compressed side by side.

    REPO/NAME_dense/config.pbtxt          REPO/NAME_compressed/config.pbtxt
    REPO/NAME_dense/1/model.onnx          REPO/NAME_compressed/1/model.onnx

A second bundle of the same model becomes the next version of both.
"""

from __future__ import annotations

import re
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from prunepass.backends.tensorrt import MODEL, PLAN, read_record
from prunepass.bundle import read_manifest
from prunepass.bundle_files import check_digests, writing
from prunepass.errors import UsageError
from prunepass.serving.text_format import as_text
from prunepass.serving.triton_config import FILES, check_batching, config

PARTS = ("dense", "compressed")


@dataclass(frozen=True)
class Served:
    """One model of a repository.

    Attributes:
        name: What clients ask for.
        version: Number of its version folder.
    """

    name: str
    version: int


def export(
    bundle: Path, repository: Path, *, name: str | None = None, most: int = 64, delay: int = 100
) -> tuple[Served, ...]:
    """Puts the models of a bundle into a repository, which is made if it is not there.

    Args:
        bundle: A bundle of ONNX, or of TensorRT with its engines built.
        repository: Triton's `--model-repository`.
        name: What the models are called, `_dense` and `_compressed` behind it; None for the
            bundle's model.
        most: Largest batch the server forms.
        delay: Microseconds that a request waits for others.

    Raises:
        ModelError: The folder is no bundle of a model of pictures, or is damaged.
        UsageError: Triton has no backend for it, its engine is not built, or the repository holds
            another model of that name.
        BackendError: Its ONNX file is damaged.
    """
    check_batching(most, delay)
    manifest = read_manifest(bundle)
    check_digests(bundle)
    if manifest.backend not in FILES:
        raise UsageError(
            f"Triton serves no engines of {manifest.backend}", found=str(bundle),
            fix="compile with --backend onnx or tensorrt",
        )  # fmt: skip
    called = name or _called(manifest.model)
    if not re.fullmatch(r"[A-Za-z0-9][\w.-]*", called):
        raise UsageError(
            f"{called!r} is no name of a model", found="other than letters, digits and _ . -",
            fix="--name vit",
        )  # fmt: skip
    texts = {}
    for part in PARTS:
        usual = None
        if manifest.backend == "tensorrt":
            usual, most = _batches(bundle / part, most)
        held = config(
            f"{called}_{part}", bundle / part / MODEL, backend=manifest.backend, most=most,
            delay=delay, usual=usual,
        )  # fmt: skip
        texts[part] = as_text(held)
        _check_same(repository / f"{called}_{part}", texts[part])
    done = []
    with writing(repository):
        for part in PARTS:
            target = repository / f"{called}_{part}"
            number = _put(bundle / part, target, texts[part], FILES[manifest.backend][1])
            done.append(Served(target.name, number))
    return tuple(done)


def _called(model: str) -> str:
    """A name for a folder out of what a model is called, such as `timm/vit_tiny`."""
    found = re.sub(r"[^\w.-]+", "_", model.rsplit("/", 1)[-1]).strip("._-")
    return found or "model"


def _batches(folder: Path, most: int) -> tuple[int, int]:
    """The batch that an engine is tuned for, and the largest it takes, at most `most`."""
    if not (folder / PLAN).is_file():
        raise UsageError(
            "the engine of this bundle is not built yet", found=f"no {PLAN} in {folder}",
            fix="compile it where TensorRT is, or with --backend onnx",
        )  # fmt: skip
    _, usual, largest = read_record(folder)[0].batches
    return min(usual, largest, most), min(most, largest)


def _check_same(target: Path, text: str) -> None:
    """Nothing, if a repository has no model of that name, or the same one."""
    there = target / "config.pbtxt"
    if target.exists() and not (
        there.is_file() and there.read_text(encoding="utf-8", errors="replace") == text
    ):
        raise UsageError(
            f"{target} is another model", found=f"another {there.name}, or none",
            fix="--name ANOTHER, or an empty repository",
        )  # fmt: skip


def _put(source: Path, target: Path, text: str, file: str) -> int:
    """Writes one model as its next version, the version folder at once; the version's number."""
    target.mkdir(parents=True, exist_ok=True)
    versions = [int(p.name) for p in target.iterdir() if p.is_dir() and p.name.isdecimal()]
    number = max(versions, default=0) + 1
    scratch = Path(tempfile.mkdtemp(prefix=".", dir=target))
    try:
        for path in source.glob(f"{file}*"):
            shutil.copy2(path, scratch / path.name)
        scratch.chmod(0o755)
        # Triton looks at a folder once it has both, so the model comes first.
        scratch.rename(target / str(number))
        (target / "config.pbtxt").write_text(text, encoding="utf-8")
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    return number
