"""The command line of `trtexec` that builds an engine, for machines without TensorRT's Python."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from prunepass.backends.tensorrt_settings import Profile, TensorRTSettings
from prunepass.backends.tensorrt_versions import INTERFACES, Interface

FILE = "trtexec.txt"


def command(
    settings: TensorRTSettings, inputs: Sequence[Profile], known: Interface, *, model: str,
    engine: str,
) -> list[str]:  # fmt: skip
    """The words of the command line for one version of TensorRT.

    Args:
        settings: How the engine is built.
        inputs: Sizes of its inputs.
        known: The version.
        model: The ONNX file.
        engine: The file to write.
    """
    words = ["trtexec", f"--onnx={model}", f"--saveEngine={engine}", known.build_only]
    free = [one for one in inputs if one.free]
    for flag, sizes in (("min", "least"), ("opt", "usual"), ("max", "most")):
        shapes = (f"{one.name}:{'x'.join(map(str, getattr(one, sizes)))}" for one in free)
        if free:
            words.append(f"--{flag}Shapes={','.join(shapes)}")
    words.append(f"--memPoolSize=workspace:{settings.workspace}")
    if known.levels:
        words.append(f"--builderOptimizationLevel={settings.level}")
    if not settings.tf32:
        words.append("--noTF32")
    if known.strongly_typed == "asked":
        words.append("--stronglyTyped")
    elif known.strongly_typed == "never" and settings.precision != "fp32":
        words.append(f"--{settings.precision}")
    return words


def commands(
    settings: TensorRTSettings, inputs: Sequence[Profile], *, model: str, engine: str
) -> str:
    """The text of a file with the command line of each version, to be run in its folder."""
    lines = ["The engine of this folder is not built yet. On the machine that is to run it, here:"]
    for number, known in enumerate(INTERFACES):
        name = ".".join(map(str, known.version))
        after = INTERFACES[number + 1 :]
        upto = f" to before {'.'.join(map(str, after[0].version))}" if after else " and newer"
        if settings.opset > known.opset or (settings.precision == "bf16" and not known.bf16):
            continue
        words = command(settings, inputs, known, model=model, engine=engine)
        lines += ["", f"TensorRT {name}{upto}:", f"    {shlex.join(words)}"]
    return "\n".join(lines) + "\n"
