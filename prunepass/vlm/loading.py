"""A vision-language bundle from its folder, checked against its own manifest."""

from __future__ import annotations

from pathlib import Path

import torch

from prunepass.backends.table import backend as find_backend
from prunepass.errors import BackendError, ModelError
from prunepass.vlm.cache import Cache
from prunepass.vlm.generate import Conversation, VlmBundle
from prunepass.vlm.manifest import ENGINES, read_vlm_manifest
from prunepass.vlm.text import read_text


def load(folder: str | Path, *, threads: int | None = None) -> VlmBundle:
    """A vision-language bundle; needs neither the model's source nor transformers.

    Args:
        folder: What `compile` wrote.
        threads: Threads of each engine, None for one a core.

    Raises:
        ModelError: The folder is no such bundle, or an engine is missing.
        BackendError: An engine cannot be loaded, or does not fit the manifest.
    """
    place = Path(folder)
    manifest = read_vlm_manifest(place)
    settings = {"threads": threads} if threads and manifest.backend == "onnx" else {}
    if threads and not settings:
        torch.set_num_threads(threads)
    chosen = find_backend(manifest.backend, **settings)
    missing = [name for name in ENGINES if not (place / name).is_dir()]
    if missing:
        raise ModelError(
            f"{place} lacks an engine", found=f"no folder {', '.join(missing)}", fix="compile again"
        )
    engines = {name: chosen.load(place / name) for name in ENGINES}
    text = read_text(place, template=manifest.template, image_mark=manifest.image_mark)
    bundle = VlmBundle(manifest, engines, text, place)
    check_decoder(bundle)
    return bundle


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
        for layer in range(len(manifest.dropped)):
            stage = sum(layer >= first for first in firsts) - 1
            layers += [torch.zeros(1, heads, 2 + stage, width, dtype=embeds.dtype)] * 2
        valid = [torch.zeros(1, 2 + g, dtype=torch.int64) for g in range(len(firsts))]
        dropped = [0] * len(firsts)
        zero = torch.zeros(1, dtype=torch.int64)
        cache = Cache(firsts, layers, valid, dropped, zero, room=1)
        talk = Conversation(cache, torch.zeros(1, manifest.vocabulary), [])
        bundle.extend(talk, torch.zeros(1, 1, dtype=torch.int64))
        if talk.logits.shape != (1, manifest.vocabulary):
            raise ValueError(f"logits of shape {list(talk.logits.shape)}")
    except BackendError:
        raise
    except Exception as error:
        raise BackendError(
            "the decoder does not fit the manifest of its bundle",
            found=str(error).strip().splitlines()[0][:200],
            fix="compile again",
        ) from error
