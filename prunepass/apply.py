"""Carrying out a plan."""

from __future__ import annotations

from torch.export import ExportedProgram

from prunepass.analyse.sites import fingerprint
from prunepass.errors import PlanError
from prunepass.passes.table import PASSES
from prunepass.plan import Plan
from prunepass.records import PassRecord


def apply_plan(program: ExportedProgram, plan: Plan) -> ExportedProgram:
    """The program with the plan carried out. The program given stays as it is.

    Raises:
        PlanError: The plan was made for another model, or names what the program does not have.
        UnsupportedGraph: The graph does not allow a step.
    """
    return apply_with_records(program, plan)[0]


def apply_with_records(
    program: ExportedProgram, plan: Plan
) -> tuple[ExportedProgram, list[PassRecord]]:
    """As `apply_plan`, with what each pass did."""
    found = fingerprint(program)
    if plan.fingerprint != found:
        raise PlanError(
            "the plan was made for another model",
            found=f"plan for {plan.fingerprint}, this model is {found}",
            fix="make a plan for this model with `prunepass plan`",
        )
    records = []
    for kind, run in PASSES.items():
        steps = [step for step in plan.steps if step.kind == kind]
        if steps:
            program, record = run(program, steps)
            records.append(record)
    return program, records
