"""`prunepass eval`: quality of a bundle on labelled pictures."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prunepass.commands.request import Say
from prunepass.commands.words import triple
from prunepass.engines import load_engines
from prunepass.errors import UsageError
from prunepass.measure.fidelity import fidelity
from prunepass.sources.pictures import NO_LABEL, find_pictures
from prunepass.sources.preprocess import Preprocessing


def arguments(parser: ArgumentParser) -> None:
    """What the command takes."""
    parser.add_argument("bundle", metavar="DIR", type=Path)
    parser.add_argument("--images", required=True, metavar="DIR", help="folder of pictures")
    parser.add_argument("--limit", type=int, metavar="N", help="use N of the pictures")
    parser.add_argument("--mean", type=triple, metavar="R,G,B")
    parser.add_argument("--std", type=triple, metavar="R,G,B")
    parser.add_argument("--crop", type=float, metavar="SHARE")


def run(words: Namespace, *, say: Say) -> dict[str, Any]:
    """Quality of a bundle on labelled pictures."""
    manifest, engines = load_engines(words.bundle)
    if manifest.preprocessing is None:
        raise UsageError(
            "the bundle does not say how pictures are prepared",
            found="no preprocessing in bundle.json",
            fix="compile with the command line, or give preprocessing to prunepass.compile",
        )
    preprocessing = Preprocessing.from_dict(manifest.preprocessing).override(
        mean=words.mean, std=words.std, crop=words.crop
    )
    pictures = find_pictures(words.images, labelled=False)
    if words.limit is not None:
        if words.limit < 1:
            raise UsageError(
                "--limit needs at least one picture", found=str(words.limit), fix="--limit 100"
            )
        if words.limit < len(pictures):
            pictures = pictures.split(words.limit)[0]
    with say.bar("pictures", len(pictures)) as advance:
        found = fidelity(
            engines["dense"],
            engines["compressed"],
            pictures.batches(preprocessing, manifest.batch or 16),
            progress=advance,
        )
    told = asdict(found)
    if NO_LABEL in pictures.labels:
        told |= dict.fromkeys(("top1_dense", "top1", "top5_dense", "top5"))
        say(f"{found.count} pictures without class numbers: agreement and divergence only")
    else:
        say(
            f"{found.count} pictures: top-1 {found.top1_dense:.1%} dense, {found.top1:.1%} "
            f"compressed; top-5 {found.top5_dense:.1%}, {found.top5:.1%}"
        )
    say(f"agreement {found.agreement:.1%}, KL {found.kl:.4f} +- {found.kl_error:.4f} nats")
    if manifest.weights == "random":
        say("the weights are random: these figures say nothing about the method")
    return {"model": manifest.model, "weights": manifest.weights, **told}
