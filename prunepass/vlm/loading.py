"""A vision-language bundle from its folder, checked against its own manifest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from prunepass.backends.table import backend as find_backend
from prunepass.backends.tensorrt_engine import UnbuiltEngine
from prunepass.bundle_files import check_digests
from prunepass.errors import BackendError, ModelError, UsageError, first_line
from prunepass.vlm.cache import Cache
from prunepass.vlm.conversation import Conversation
from prunepass.vlm.generate import VlmBundle
from prunepass.vlm.manifest import ENGINES, read_vlm_manifest
from prunepass.vlm.text import read_text

DEVICES = ("cpu", "cuda")
_CUDA = ("CUDAExecutionProvider", "CPUExecutionProvider")
"""Execution providers of ONNX Runtime, in order of preference."""


def load(
    folder: str | Path, *, threads: int | None = None, device: str = "cpu", mapped: bool = False
) -> VlmBundle:
    """A vision-language bundle; needs neither the model's source nor transformers.

    Args:
        folder: What `compile` wrote.
        threads: Threads of each engine, None for one a core.
        device: `cpu`, or `cuda` for ONNX Runtime on a GPU: its engines compute there, and there
            the cache stays.
        mapped: Whether prefill and decoding read one and the same copy of the weights, where it
            lies in its file, instead of one each: less memory for more time, see
            docs/vision-language.md. Of ONNX Runtime on the CPU.

    Raises:
        UsageError: The backend of the bundle has no such device, or maps no weights.
        ModelError: The folder is no such bundle, an engine is missing, or a file was changed.
        BackendError: An engine cannot be loaded, or does not fit the manifest.
    """
    place = Path(folder)
    manifest = read_vlm_manifest(place)
    if mapped and (manifest.backend != "onnx" or device != "cpu"):
        raise UsageError(
            "weights are mapped by ONNX Runtime on the CPU",
            found=f"an engine of {manifest.backend} on {device}",
            fix="leave mapped out",
        )
    settings = _settings(manifest.backend, threads, device)
    if mapped:
        settings["mapped"] = True
    chosen = find_backend(manifest.backend, **settings)
    missing = [
        name
        for name in ENGINES
        if not (place / name).is_dir() and not (place / f"{name}.onnx").is_file()
    ]
    if missing:
        raise ModelError(
            f"{place} lacks an engine", found=f"no {', '.join(missing)}", fix="compile again"
        )
    check_digests(place)
    engines = {name: chosen.load(place / name) for name in ENGINES}
    text = read_text(place, template=manifest.template, image_mark=manifest.image_mark)
    bundle = VlmBundle(manifest, engines, text, place)
    if not isinstance(engines["decode"], UnbuiltEngine):
        check_decoder(bundle)
    return bundle


def _settings(backend: str, threads: int | None, device: str) -> dict[str, Any]:
    if device not in DEVICES or (device != "cpu" and backend != "onnx"):
        raise UsageError(
            f"engines of {backend} do not run on {device!r}",
            found=f"device={device!r}",
            fix="device='cpu', or 'cuda' for a bundle of ONNX; a package of AOTInductor computes "
            "where it was compiled for (--device)",
        )
    if backend != "onnx":
        if threads:
            torch.set_num_threads(threads)
        return {}
    if device == "cpu":
        return {"threads": threads}
    from onnxruntime import get_available_providers

    lacking = [name for name in _CUDA if name not in get_available_providers()]
    if lacking:
        raise BackendError(
            f"ONNX Runtime cannot compute on {device!r} here",
            found=f"no {', '.join(lacking)}",
            fix="pip install onnxruntime-gpu in place of onnxruntime",
        )
    return {"threads": threads, "providers": _CUDA}


def check_decoder(bundle: VlmBundle) -> None:
    """Nothing, if the decoder takes the caches that the manifest tells of.

    It is run on one token and a cache of another length a stage.

    Raises:
        BackendError: It does not.
    """
    manifest = bundle.manifest
    firsts, (heads, width) = manifest.first_layers, manifest.cache
    try:
        (embeds,) = bundle.engines["embedding"](torch.zeros(1, 1, dtype=torch.int64))
        layers = []
        for layer in range(len(manifest.shares)):
            stage = sum(layer >= first for first in firsts) - 1
            layers += [torch.zeros(1, heads, 2 + stage, width, dtype=embeds.dtype)] * 2
        valid = [torch.zeros(1, 2 + g, dtype=torch.int64) for g in range(len(firsts))]
        dropped = [0] * len(firsts)
        zero = torch.zeros(1, dtype=torch.int64)
        cache = Cache(firsts, layers, valid, dropped, zero, room=1)
        decode = bundle.engines["decode"]
        talk = Conversation(cache, torch.zeros(1, manifest.vocabulary), [], decode)
        bundle.extend(talk, torch.zeros(1, 1, dtype=torch.int64))
        if talk.logits.shape != (1, manifest.vocabulary):
            raise ValueError(f"logits of shape {list(talk.logits.shape)}")
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(
            "the decoder does not fit the manifest of its bundle",
            found=first_line(error, most=200),
            fix="compile again",
        ) from error
