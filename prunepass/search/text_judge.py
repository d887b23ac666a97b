"""What reading fewer inputs does to what a decoder says on texts."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.fx import GraphModule, Interpreter, Node

from prunepass.analyse.projections import projections
from prunepass.errors import ModelError
from prunepass.graph.edit import open_module
from prunepass.measure.fidelity import kl
from prunepass.planners.decoder_texts import checked_texts, step_inputs, vocabulary
from prunepass.plans import Step
from prunepass.rules.input_table import input_rule
from prunepass.rules.weight_aware import (
    column_norm,
    input_score,
    kept_inputs,
    masked_linear,
    top_mask,
)
from prunepass.search.judge import Verdict
from prunepass.search.recipe import key_of

FEWEST = 4


class TextJudge:
    """Runs a decoder on two sets of texts, all of whose tokens read fewer inputs.

    Args:
        program: From `language.capture` with the logits of every token.
        texts: As token numbers; half of them choose.
        seed: Of the split.

    Raises:
        ModelError: There are too few texts.
        PlanError: One is empty, too long, or holds unknown tokens.
    """

    def __init__(
        self, program: ExportedProgram, texts: Sequence[Sequence[int]], *, seed: int = 0
    ) -> None:
        if len(texts) < FEWEST:
            raise ModelError(
                f"a planner needs at least {FEWEST} texts", found=str(len(texts)),
                fix="--texts FILE, one a line",
            )  # fmt: skip
        order = list(range(len(texts)))
        random.Random(seed).shuffle(order)
        half = len(order) // 2
        self.texts = {
            "chosen": [texts[i] for i in order[:half]], "unseen": [texts[i] for i in order[half:]]
        }  # fmt: skip
        self._program, self._module = program, open_module(program)
        self._sites = projections(self._module.graph)
        self._dense = {part: self._logits(part, ()) for part in self.texts}
        self._verdicts = dict[str, Verdict]()

    def verdict(self, steps: Sequence[Step], *, part: str = "chosen") -> Verdict:
        """What steps of `sparsify_inputs` do: divergence of each text, agreement of each token."""
        key = part + key_of(steps)
        if key not in self._verdicts:
            pairs = list(zip(self._dense[part], self._logits(part, steps), strict=True))
            self._verdicts[key] = Verdict(
                tuple(float(kl(told, said).mean()) for told, said in pairs),
                tuple(
                    same
                    for told, said in pairs
                    for same in (told.argmax(1) == said.argmax(1)).tolist()
                ),
            )
        return self._verdicts[key]

    @torch.no_grad()
    def _logits(self, part: str, steps: Sequence[Step]) -> list[Tensor]:
        """Logits [T, V] of each text of a part."""
        tokens = vocabulary(self._program)
        runner = _Masked(self._module, {self._sites[s.site]: s for s in steps})
        found: list[Tensor] = []
        for batch in checked_texts(self.texts[part], tokens):
            for text in batch.split(1):
                # Two alike: a program keeps the batch it came with apart from 1 only.
                both = text.expand(2, -1)
                found.append(runner.run(*step_inputs(self._program, both))[0][0])
        return found


class _Masked(Interpreter):
    """An opened decoder whose layers read the inputs that steps leave, as a mask."""

    def __init__(self, module: GraphModule, steps: Mapping[Node, Step]) -> None:
        super().__init__(module)
        self.steps = steps

    def run_node(self, n: Node) -> Any:
        step = self.steps.get(n)
        if step is None:
            return super().run_node(n)
        (x, weight, *bias), _ = self.fetch_args_kwargs_from_env(n)
        norm = column_norm(weight) if input_rule(step.rule).score == "norm" else None
        mask = top_mask(input_score(x, norm), kept_inputs(x.shape[-1], float(step.keep)))
        return masked_linear(x, weight, bias[0] if bias else None, mask)
