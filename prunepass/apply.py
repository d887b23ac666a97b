"""Carrying out a plan."""

from __future__ import annotations

from torch.export import ExportedProgram

from prunepass.analyse.sites import fingerprint
from prunepass.errors import PlanError
from prunepass.passes.table import PASSES
from prunepass.plans import Plan
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
    _check_dropped(plan)
    records = []
    for kind, run in PASSES.items():
        steps = [step for step in plan.steps if step.kind == kind]
        if steps:
            program, record = run(program, steps)
            records.append(record)
    return program, records


def _check_dropped(plan: Plan) -> None:
    """Nothing, if no step names a site of a layer that another step drops."""
    gone = {step.site for step in plan.steps if step.kind == "drop_layers"}
    for step in plan.steps:
        if step.kind == "drop_layers":
            continue
        block = step.site.split(".")[0]
        if block in gone or step.site in gone:
            raise PlanError(
                f"the step at {step.site} is at a layer that the same plan drops",
                found=f"drop_layers at {block if block in gone else step.site}",
                fix="leave one of the two out",
            )
