"""Compiled code for a CPU, made on first use by the system's compiler.

Sources are part of the package; what comes of them lies in the user's cache, under names that
tell versions apart. Where there is no compiler, nothing here is available.
"""

from __future__ import annotations

import ctypes
import functools
import hashlib
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prunepass.user_cache import user_cache

FOR_TORCH = Path(__file__).with_name("gated_linear_torch.cpp")
FOR_ONNX = Path(__file__).with_name("operators_onnx.cpp")
_OPTIONS = ("-O3", "-std=c++17", "-ffp-contract=fast", "-fno-trapping-math", "-shared", "-fPIC")
_NAMES = {torch.float32: "float", torch.bfloat16: "bfloat16"}


def compiled(source: Path, *, options: tuple[str, ...] = ()) -> Path:
    """The shared library of a source of this folder, in the user's cache; compiled where missing.

    Raises:
        OSError: There is no compiler, or it fails; the message is a sentence.
    """
    text = b"".join(p.read_bytes() for p in (source, *sorted(source.parent.glob("*.h"))))
    told = hashlib.sha256(text + " ".join((*_OPTIONS, *options)).encode()).hexdigest()[:16]
    cache = user_cache()
    target = cache / f"{source.stem}-{told}.so"
    if target.is_file():
        return target
    compiler = shutil.which("g++") or shutil.which("clang++")
    if compiler is None:
        raise OSError("no C++ compiler was found (g++ or clang++)")
    cache.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed: others may be compiling the same.
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        made = Path(folder) / target.name
        command = [compiler, *_OPTIONS, *options, "-o", str(made), str(source)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            raise OSError((done.stderr.strip().splitlines() or ["the compiler failed"])[0])
        made.replace(target)
    return target


@functools.cache
def library() -> Any:
    """The compiled kernels, None where they cannot be had."""
    try:
        # PyTorch's OpenMP, which is loaded already, is the one that is found: threads are shared.
        found = ctypes.CDLL(str(compiled(FOR_TORCH, options=("-fopenmp",))))
    except OSError:
        return None
    place, number = ctypes.c_void_p, ctypes.c_int64
    for name in _NAMES.values():
        function = getattr(found, f"prunepass_gated_linear_{name}")
        function.argtypes = [*[place] * 4, *[number] * 4, ctypes.c_double, ctypes.c_int]
        function.restype = None
    found.prunepass_dense_bfloat16.argtypes = [*[place] * 3, *[number] * 3, ctypes.c_int]
    found.prunepass_dense_bfloat16.restype = None
    return found


def has_native(dtype: torch.dtype) -> bool:
    """Whether there is a compiled kernel for numbers of a kind."""
    return dtype in _NAMES and library() is not None


def native_product(x: Tensor, score: Tensor, weight: Tensor, keep: int, threshold: float) -> Tensor:
    """`gated_linear` of a few rows; `threshold` < 0 stands for none."""
    inputs, outputs = weight.shape
    x, score, weight = x.contiguous(), score.contiguous(), weight.contiguous()
    found = x.new_empty((*x.shape[:-1], outputs))
    function = getattr(library(), f"prunepass_gated_linear_{_NAMES[x.dtype]}")
    function(
        x.data_ptr(), score.data_ptr(), weight.data_ptr(), found.data_ptr(), x.numel() // inputs,
        inputs, outputs, keep, threshold, torch.get_num_threads(),
    )  # fmt: skip
    return found


def dense_product(x: Tensor, weight: Tensor) -> Tensor:
    """x [..., n_in] times all of an input-major weight [n_in, n_out].

    PyTorch multiplies bfloat16 in this order some fifty times slower than the other way round
    where the processor has no instructions for it; there the compiled kernel does it.
    """
    slow = x.dtype is torch.bfloat16 and not torch.ops.mkldnn._is_mkldnn_bf16_supported()
    if not slow or x.numel() == 0 or library() is None:
        return x @ weight
    inputs, outputs = weight.shape
    x, weight = x.contiguous(), weight.contiguous()
    found = x.new_empty((*x.shape[:-1], outputs))
    library().prunepass_dense_bfloat16(
        x.data_ptr(), weight.data_ptr(), found.data_ptr(), x.numel() // inputs, inputs, outputs,
        torch.get_num_threads(),
    )  # fmt: skip
    return found
