"""All rules."""

from __future__ import annotations

from prunepass.doctor import (
    rules_onnxruntime,
    rules_program,
    rules_tensorrt,
    rules_tensorrt_limits,
)
from prunepass.doctor.rule import Rule

RULES: tuple[Rule, ...] = (
    *rules_onnxruntime.RULES,
    *rules_tensorrt.RULES,
    *rules_tensorrt_limits.RULES,
    *rules_program.RULES,
)
"""Every trap that the doctor knows, one row each."""
