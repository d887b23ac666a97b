"""Commands that know bundles of pictures alone say so of others."""

from __future__ import annotations

from pathlib import Path

from prunepass.errors import UsageError
from prunepass.language.manifest import is_language_bundle
from prunepass.vlm.manifest import is_vlm_bundle


def check_pictures(bundle: Path, *, verb: str, instead: str) -> None:
    """Nothing, unless a folder holds the bundle of a model of text.

    Args:
        bundle: The folder.
        verb: The command.
        instead: What does work with such a bundle.

    Raises:
        UsageError: It does.
    """
    kinds = {"a language model": is_language_bundle, "a vision-language model": is_vlm_bundle}
    for kind, holds in kinds.items():
        if holds(bundle):
            raise UsageError(
                f"{verb} is for bundles of models of pictures alone",
                found=f"{bundle}, a bundle of {kind}", fix=instead,
            )  # fmt: skip
