from __future__ import annotations

import json
import subprocess
import sys

HEAVY = ["onnx", "onnxruntime", "onnxscript", "timm", "transformers", "tensorrt",
         "torch_tensorrt", "torchvision", "PIL", "rich", "safetensors"]  # fmt: skip
CODE = """
import json, sys, torch
before = set(sys.modules)
import prunepass
print(json.dumps(sorted(set(sys.modules) - before)))
"""


def test_import_prunepass_loads_torch_and_nothing_heavier() -> None:
    run = subprocess.run(
        [sys.executable, "-c", CODE], capture_output=True, text=True, check=True, timeout=120
    )
    loaded = {name.split(".")[0] for name in json.loads(run.stdout)}
    assert "prunepass" in loaded
    assert not loaded & set(HEAVY)
