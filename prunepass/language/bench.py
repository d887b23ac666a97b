"""Timing one decoding step of a bundle: dense against compressed, in turns."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunepass.errors import UsageError
from prunepass.language.generate import load
from prunepass.language.manifest import LanguageManifest
from prunepass.measure.environment import environment
from prunepass.measure.timing import interleaved, speedup

CACHED = 128
"""Tokens in the cache while one is decoded."""


def bench_decoding(
    folder: str | Path, *, batches: Sequence[int] = (1,), threads: int | None = None, runs: int = 30
) -> dict[str, Any]:
    """Milliseconds of one decoding step by batch, both engines in turns.

    Args:
        folder: A bundle.
        batches: Prompts at once.
        threads: Threads of an engine.
        runs: Measured runs of each.

    Raises:
        UsageError: A number is out of range.
        ModelError: The folder is no bundle of a language model.
    """
    if runs < 3 or any(b < 1 for b in batches) or (threads is not None and threads < 1):
        raise UsageError(
            "bench needs at least 3 runs, batches and threads of at least 1",
            found=f"runs {runs}, batch {list(batches)}, threads {threads}",
            fix="runs=30",
        )
    bundle = load(folder, threads=threads, parts=("dense", "compressed"))
    manifest = bundle.manifest
    rows = []
    for batch in batches:
        made = decoding_inputs(manifest, batch=batch, cached=min(CACHED, manifest.context - 1))
        inputs = tuple(x.to(bundle.device) for x in made)
        found = interleaved(bundle.engines, inputs, runs=runs)
        dense, compressed = found["dense"], found["compressed"]
        rows.append({
            "batch": batch, "cache": inputs[4].shape[1],
            "dense_ms": dense.median_ms, "compressed_ms": compressed.median_ms,
            "dense_quartiles_ms": dense.quartiles_ms,
            "compressed_quartiles_ms": compressed.quartiles_ms,
            "speedup": speedup(dense, compressed), "macs_ratio": manifest.macs_ratio_at(batch),
        })  # fmt: skip
    return {
        "model": manifest.model, "backend": manifest.backend, "method": manifest.method,
        "macs_ratio": manifest.macs_ratio, "batches": rows,
        "environment": environment(threads=threads),
    }  # fmt: skip


def decoding_inputs(manifest: LanguageManifest, *, batch: int, cached: int) -> tuple[Tensor, ...]:
    """Inputs of an engine for one new token and a cache of so many random ones."""
    generator = torch.Generator().manual_seed(0)
    heads, width = manifest.cache
    one = torch.ones(batch, 1, dtype=torch.int64)
    shape = (batch, heads, cached, width)
    dtype = getattr(torch, manifest.dtype)
    layers = [torch.randn(shape, generator=generator).to(dtype) for _ in range(2 * manifest.layers)]
    numbers = torch.randint(0, manifest.vocabulary, (batch, 1), generator=generator)
    return (
        numbers, one, one * cached, torch.zeros(1, dtype=torch.int64),
        torch.ones(batch, cached, dtype=torch.int64), *layers,
    )  # fmt: skip
