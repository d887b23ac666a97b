"""Our own models, by name."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from prunepass.errors import ModelError, first_line, nearest
from prunepass.sources.hub import no_pretrained
from prunepass.sources.preprocess import Preprocessing
from prunepass.sources.weights import apply_weights, check_finite, seeded


def load_catalogue(
    name: str, *, weights: str, file: Path | None
) -> tuple[nn.Module, Preprocessing]:
    """The model of `prunepass.models` and its preprocessing.

    Args:
        name: As the catalogue lists it.
        weights: `pretrained` or `random`; not looked at where there is a `file`.
        file: Weights of this model.

    Raises:
        ModelError: the name is unknown, or the weights cannot be had or do not fit.
    """
    # mypy does not see a package that an editable install maps from another folder.
    from prunepass.models.catalogue import (  # type: ignore[import-not-found, unused-ignore]
        catalogue,
        load,
    )

    cards = catalogue()
    if name not in cards:
        raise ModelError(
            f"prunepass has no model {name!r}",
            found=f"{len(cards)} models",
            fix="one of " + ", ".join(f"prunepass/{n}" for n in nearest(name, cards).split(", ")),
        )
    card = cards[name]
    try:
        with seeded():
            if file is None and weights == "pretrained":
                module = load(name, weights="pretrained")
                check_finite(module.state_dict(), name)
            else:
                module = load(name, weights="random")
    except ModelError:
        raise
    except Exception as error:
        if file is None and weights == "pretrained":
            raise no_pretrained(name, first_line(error, most=200)) from error
        raise ModelError(
            f"cannot build prunepass/{name}",
            found=f"{type(error).__name__}: {str(error)[:200]}",
            fix='pip install "prunepass[models]"',
        ) from error
    if file is not None:
        apply_weights(module, file)
    preprocessing = Preprocessing(
        height=card.image_size,
        width=card.image_size,
        resize=card.image_size,
        mean=card.mean,
        std=card.std,
    )
    return module, preprocessing.override(crop=card.crop)
