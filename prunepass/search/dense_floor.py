"""Whether the dense model itself holds a floor, its own rounding included."""

from __future__ import annotations

from prunepass.errors import PlanError, UsageError
from prunepass.search.judge import Judge
from prunepass.search.target import Floor


def check_floor(judge: Judge, floor: Floor) -> None:
    """Nothing, if the dense model holds a floor.

    Raises:
        UsageError: The floor needs labels, and there are none.
        PlanError: It does not hold, so that no plan can.
    """
    if floor.kind == "top1":
        _check_top1(judge, floor)
        return
    noise = judge.noise().quality(floor.kind)
    if not floor.holds(noise):
        raise PlanError(
            f"the rounding of the dense model alone breaks {floor}",
            found=f"{floor.kind} {noise:.3g} between single and double precision",
            fix="kl<=0.01" if floor.kind == "kl" else "agreement>=0.99",
        )


def _check_top1(judge: Judge, floor: Floor) -> None:
    if not judge.labelled:
        raise UsageError(
            "a floor of top1 needs labels",
            found="pictures without class numbers",
            fix="agreement>=0.98, or names such as 0007_cat.jpg",
        )
    right = judge.dense_top1()
    if not floor.holds(right):
        raise PlanError(
            f"the dense model itself does not hold {floor}",
            found=f"top-1 {right:.3f}",
            fix=f"--floor 'top1>={right - 0.01:.2f}'",
        )
