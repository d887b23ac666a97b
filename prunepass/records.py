"""Plain facts that stages hand to each other: sites, pass records, measurements."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Site:
    """A place in a program where something can be removed or made sparse.

    Attributes:
        label: Its address in a plan, e.g. `block[3].attention`.
        kind: `attention`, `scan`, `mlp` or `output` (the end of a block).
        block: Block number, from 0.
        module: Path of the module the residual addition belongs to.
        tokens: Tokens on the residual stream here, prefix tokens included.
        channels: Channels of the residual stream.
        heads: Attention heads of the block, None where it has no attention matrix.
        roles: Names of the tensors a rule can ask for here.
        refusal: Why tokens cannot be reduced here, or None if they can.
    """

    label: str
    kind: str
    block: int
    module: str
    tokens: int
    channels: int
    heads: int | None
    roles: tuple[str, ...]
    refusal: str | None = None


@dataclass(frozen=True)
class Sites:
    """The address book of one program: its sites, in the order they run.

    Attributes:
        items: All sites.
        prefix_tokens: Leading tokens that do not depend on the picture (class, distillation,
            register tokens); they are never removed.
        fingerprint: Digest of labels, shapes and parameter shapes; a plan carries it.
        reads_prefix_only: Whether what follows the last block reads nothing but prefix tokens.
        missing: Why there are no sites, naming an operation and its module; None if there are.
        fixed_tokens: Numbers of tokens behind the prefix that do not depend on the picture either
            (a class token in the middle); they are never removed.
    """

    items: tuple[Site, ...]
    prefix_tokens: int
    fingerprint: str
    reads_prefix_only: bool = False
    missing: str | None = None
    fixed_tokens: tuple[int, ...] = ()

    @property
    def always_kept(self) -> int:
        """How many tokens are never removed."""
        return self.prefix_tokens + len(self.fixed_tokens)

    def __iter__(self) -> Iterator[Site]:
        return iter(self.items)

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, label: str) -> Site:
        for site in self.items:
            if site.label == label:
                return site
        raise KeyError(label)

    def reducible(self, kind: str) -> list[Site]:
        """The sites of a kind at which tokens can be reduced."""
        return [site for site in self.items if site.kind == kind and site.refusal is None]


@dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Attributes:
        kind: Kind of step, e.g. `reduce_tokens`.
        applied: Labels of the sites that were rewritten, in graph order.
        tokens: Site label -> (tokens before, tokens after).
        always_kept: Numbers of the tokens that are never removed.
        details: Counts worth reading: frozen sizes, live-ins, biased attentions.
        left: Site -> why a planned step was not carried out there.
    """

    kind: str
    applied: tuple[str, ...]
    tokens: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    always_kept: tuple[int, ...] = ()
    details: Mapping[str, int] = field(default_factory=dict)
    left: Mapping[str, str] = field(default_factory=dict)
