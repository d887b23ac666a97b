"""What was said: an answer, and a conversation that goes on."""

from __future__ import annotations

from dataclasses import dataclass, field

from torch import Tensor

from prunepass.backends.protocol import Engine
from prunepass.vlm.cache import Cache


@dataclass
class Answer:
    """What was said to one prompt.

    Attributes:
        tokens: Their numbers, without the token that ended it.
        text: None where the bundle has no tokenizer.
        kept: For each stage behind a pruning, where the tokens that stayed stood in the prompt.
    """

    tokens: list[int]
    text: str | None = None
    kept: list[list[int]] = field(default_factory=list)


@dataclass
class Conversation:
    """A cache with what was said so far.

    Attributes:
        cache: Of one batch of prompts.
        logits: [B, V] behind the last token.
        kept: [B, T'] for each stage behind a pruning, positions in the prompt.
        step: The decoder, which reads this cache where it lies.
    """

    cache: Cache
    logits: Tensor
    kept: list[Tensor]
    step: Engine
