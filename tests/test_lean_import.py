from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import prunepass

HEAVY = ["onnx", "onnxruntime", "onnxscript", "timm", "transformers", "tensorrt",
         "torch_tensorrt", "torchvision", "PIL", "rich", "safetensors"]  # fmt: skip
CODE = """
import json, sys{first}
before = set(sys.modules)
sys.stdout = sys.stderr
import prunepass{then}
sys.stdout = sys.__stdout__
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def loaded(first: str = "", then: str = "") -> set[str]:
    code = CODE.format(first=first, then=then)
    run = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=120
    )
    return {name.split(".")[0] for name in json.loads(run.stdout)}


def test_import_prunepass_loads_nothing_heavy() -> None:
    found = loaded()
    assert "prunepass" in found
    assert not found & {*HEAVY, "torch", "numpy"}


def test_the_help_page_loads_nothing_heavy() -> None:
    found = loaded(then="; prunepass.__doc__; import prunepass.__main__ as m; m.main([])")
    assert not found & {*HEAVY, "torch", "numpy"}


def test_every_name_loads_torch_and_nothing_heavier() -> None:
    found = loaded(", torch", "; [getattr(prunepass, name) for name in prunepass.__all__]")
    assert "prunepass" in found
    assert not found & set(HEAVY)


def test_no_file_hides_a_name_of_the_package() -> None:
    files = {path.stem for path in Path(prunepass.__file__).parent.iterdir()}
    assert files & set(prunepass.__all__) == {"language", "vlm"}
