"""The doctor on a vision-language bundle made for ONNX Runtime."""

from __future__ import annotations

import prunepass
from prunepass import vlm


def test_a_bundle_passes_its_doctor(onnx_bundle: vlm.VlmBundle) -> None:
    assert onnx_bundle.folder is not None
    targets = [f"onnxruntime==1.{minor}" for minor in (29, 30, 31)]
    assert prunepass.examine(onnx_bundle.folder, targets=targets) == ()


def test_what_it_holds_goes_to_tensorrt_10_as_it_is(onnx_bundle: vlm.VlmBundle) -> None:
    """Nothing of it calls an operator of ours: that is for scans and sparse products alone."""
    assert onnx_bundle.folder is not None
    found = prunepass.examine(onnx_bundle.folder, targets=("tensorrt==10", "tensorrt==11"))
    assert not [finding for finding in found if finding.blocking]
