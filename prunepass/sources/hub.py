"""Whether a download can work, and what has been downloaded before."""

from __future__ import annotations

import threading
import urllib.error
import urllib.request
from pathlib import Path

from prunepass.errors import ModelError

_SECONDS = 4.0


def reachable(address: str) -> str | None:
    """None where the server of `address` answers, or the reason as a sentence, within 5 s.

    The libraries that download retry for minutes; this asks once before they start. Proxies from
    the environment are used.
    """
    answer: list[str | None] = [f"no answer within {_SECONDS:g} s"]

    def ask() -> None:
        try:
            request = urllib.request.Request(address, method="HEAD")
            urllib.request.urlopen(request, timeout=_SECONDS).close()
            answer[0] = None
        except urllib.error.HTTPError:
            answer[0] = None  # the server said no to this page, but it is there
        except (OSError, ValueError) as error:
            answer[0] = str(getattr(error, "reason", error))

    # A name server that does not answer blocks longer than any timeout of urlopen.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(_SECONDS + 0.5)
    return answer[0]


def hub_unreachable() -> str | None:
    """None where the Hugging Face hub answers, or the reason as a sentence."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return reachable(constants.ENDPOINT)


def cached_file(repo: str, names: tuple[str, ...]) -> Path | None:
    """The first of `names` that an earlier download of the hub repository left on this machine.

    Args:
        repo: For instance `timm/vit_tiny_patch16_224.augreg_in21k_ft_in1k`, with `@revision`.
        names: File names in the repository, the preferred one first.
    """
    from huggingface_hub import try_to_load_from_cache

    repo, _, revision = repo.partition("@")
    for name in names:
        path = try_to_load_from_cache(repo, name, revision=revision or None)
        if isinstance(path, str):
            return Path(path)
    return None


def no_pretrained(model: str, reason: str) -> ModelError:
    """The error where pretrained weights cannot be had; names the two other ways."""
    return ModelError(
        f"cannot get the pretrained weights of {model}",
        found=reason,
        fix="--weights FILE (.safetensors or a torch file), or --weights random for speed and "
        "structure",
    )
