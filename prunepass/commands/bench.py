"""`prunepass bench`: how long the engines of a bundle take, against each other."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path
from typing import Any

import torch

from prunepass.commands.request import Say
from prunepass.compiler import load_engines
from prunepass.errors import UsageError
from prunepass.language import commands as language_commands
from prunepass.language.manifest import is_language_bundle
from prunepass.measure.environment import environment
from prunepass.measure.timing import interleaved, speedup


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", metavar="DIR", type=Path)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], metavar="N")
    parser.add_argument("--threads", type=int, metavar="N", help="threads (default: the library's)")
    parser.add_argument("--runs", type=int, default=30, metavar="N", help="runs of each (30)")


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Times the engines of a bundle against each other."""
    if is_language_bundle(words.bundle):
        return language_commands.bench(words, say=say)
    if (
        words.runs < 3
        or any(b < 1 for b in words.batch)
        or (words.threads is not None and words.threads < 1)
    ):
        raise UsageError(
            "bench needs at least 3 runs, batches and threads of at least 1",
            found=f"--runs {words.runs} --batch {words.batch} --threads {words.threads}",
            fix="--runs 30 --batch 1 8 --threads 2",
        )
    manifest, engines = load_engines(words.bundle, threads=words.threads)
    if manifest.batch is not None and words.batch != [manifest.batch]:
        say(f"the bundle is fixed to batch {manifest.batch}")
        words.batch = [manifest.batch]
    ratio = manifest.macs_ratio
    result: dict[str, Any] = {
        "model": manifest.model,
        "backend": manifest.backend,
        "macs_dense": manifest.macs_dense,
        "macs": manifest.macs,
        "macs_ratio": ratio,
        "batches": [],
    }
    (shape, kind), *_ = manifest.inputs.values()
    say(
        f"{manifest.model}, {manifest.backend}: {manifest.macs_dense / 1e9:.3f} -> "
        f"{manifest.macs / 1e9:.3f} GMAC ({ratio:.3f})"
    )
    for size in words.batch:
        generator = torch.Generator().manual_seed(0)
        images = torch.randn((size, *shape[1:]), generator=generator).to(getattr(torch, kind))
        timings = interleaved(engines, (images,), runs=words.runs)
        gain = speedup(timings["dense"], timings["compressed"])
        row = {
            "batch": size,
            "dense_ms": timings["dense"].median_ms,
            "compressed_ms": timings["compressed"].median_ms,
            "dense_quartiles_ms": timings["dense"].quartiles_ms,
            "compressed_quartiles_ms": timings["compressed"].quartiles_ms,
            "speedup": gain,
            "realised": gain * ratio,
        }
        result["batches"].append(row)
        say(
            f"  batch {size:<4} dense {row['dense_ms']:8.1f} ms   compressed "
            f"{row['compressed_ms']:8.1f} ms   speed-up {gain:.2f}   realised {gain * ratio:.2f}"
        )
    result["environment"] = environment(threads=words.threads)
    return result
