"""The tokenizer of `tiny_llava`: one token a word of `questions.WORDS`."""

from __future__ import annotations

from typing import Any

from .questions import WORDS

TEMPLATE = "<s> look at the picture {image} {prompt} answer :"
IMAGE_MARK = "<image>"


def tokenizer() -> Any:
    """A `tokenizers.Tokenizer` that splits at white space. Needs the package tokenizers.

    Question marks are words of their own, so `what is it?` reads like `what is it ?`.
    """
    from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

    made = Tokenizer(
        models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>")  # type: ignore[call-arg, no-untyped-call]
    )
    made.normalizer = normalizers.Sequence(  # type: ignore[assignment]
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"\?"), " ? ")]
    )
    made.pre_tokenizer = pre_tokenizers.WhitespaceSplit()  # type: ignore[assignment]
    made.decoder = decoders.WordPiece(prefix="##")  # type: ignore[assignment]
    made.add_special_tokens(["<pad>", "<s>", "</s>", "<image>"])
    return made
