"""Text to token numbers and back, with the tokenizer file of a bundle."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

from prunepass.errors import ModelError, UsageError

FILE = "tokenizer.json"


class Text:
    """A tokenizer of a bundle, and how a question becomes a prompt.

    Args:
        tokenizer: A `tokenizers.Tokenizer`.
        template: A prompt with `{image}` and `{prompt}`, None for the question alone.
        image_mark: Text of the token that stands for an image.
    """

    def __init__(self, tokenizer: Any, *, template: str | None, image_mark: str | None) -> None:
        self.tokenizer = tokenizer
        self.template, self.image_mark = template, image_mark

    def prompt(self, question: str, images: int) -> list[int]:
        """Token numbers of a question about so many images.

        A question that marks its images itself is taken as the whole prompt.
        """
        mark = self.image_mark or ""
        text = question
        if self.template is not None and not (mark and mark in question):
            text = self.template.replace("{image}", mark * images).replace("{prompt}", question)
        numbers: list[int] = self.tokenizer.encode(text).ids
        return numbers

    def continued(self, said: str) -> list[int]:
        """Token numbers of more text of a conversation, nothing put in front."""
        numbers: list[int] = self.tokenizer.encode(said, add_special_tokens=False).ids
        return numbers

    def text(self, tokens: list[int]) -> str:
        """The text of token numbers, special tokens left out."""
        decoded: str = self.tokenizer.decode(tokens, skip_special_tokens=True)
        return decoded


def read_text(folder: Path, *, template: str | None, image_mark: str | None) -> Text | None:
    """The tokenizer of a bundle, None where it has none.

    Raises:
        ModelError: The file cannot be read.
        UsageError: The package `tokenizers` is missing.
    """
    path = folder / FILE
    if not path.is_file():
        return None
    if importlib.util.find_spec("tokenizers") is None:
        raise UsageError(
            "text needs the package tokenizers",
            found="it is not installed",
            fix="pip install tokenizers, or give token numbers",
        )
    import tokenizers

    try:
        made = tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:
        raise ModelError(
            f"cannot read {path}", found=str(error)[:200], fix="compile again"
        ) from error
    return Text(made, template=template, image_mark=image_mark)
