from __future__ import annotations

import pytest

from prunepass.analyse.projections import block_of, label_projections, projections, role_of
from prunepass.analyse.rms_norm import rms_norm_before
from prunepass.capturing import capture
from prunepass.errors import UnsupportedGraph
from prunepass.graph import meta
from prunepass.graph.edit import open_module
from tests.tiny_decoders import SOME
from tests.tiny_decoders import captured as decoder_program
from tests.tiny_models import images, tiny

SEVEN = ["attention.q", "attention.k", "attention.v", "attention.o", "mlp.gate", "mlp.up",
         "mlp.down"]  # fmt: skip
ROLES = {
    "llama": SEVEN,
    "qwen2": SEVEN,
    "phi": ["attention.q", "attention.k", "attention.v", "attention.o", "mlp.up", "mlp.down"],
    "phi3": ["attention.qkv", "attention.o", "mlp.gate_up", "mlp.down"],
}


@pytest.mark.parametrize("family", SOME)
def test_every_layer_of_a_decoder_is_found_by_what_it_is_for(family: str) -> None:
    program = decoder_program(family)
    found = projections(program.graph)
    assert sorted(found) == sorted(f"block[{i}].{r}" for i in range(2) for r in ROLES[family])
    names = {"q": "q_proj", "k": "k_proj", "v": "v_proj", "o": ("o_proj", "dense"),
             "gate": "gate_proj", "up": ("up_proj", "fc1"), "down": ("down_proj", "fc2"),
             "qkv": "qkv_proj", "gate_up": "gate_up_proj"}  # fmt: skip
    for site, node in found.items():
        path = meta.module_path(node)
        assert path.endswith(names[role_of(site)]), (site, path)
        assert f".{block_of(site)}." in path


def test_a_vision_transformer_has_its_layers_found_too() -> None:
    program = label_projections(capture(tiny("class"), (images(2),)))
    roles = {role_of(site) for site in projections(program.graph)}
    assert {"qkv", "o", "up", "down"} <= roles


def test_norms_are_recognised_where_they_are_root_mean_squares() -> None:
    found = projections(open_module(decoder_program("llama")).graph)
    norm = rms_norm_before(found["block[0].mlp.gate"])
    assert "block[0].attention:output" in meta.labels(norm.stream)
    layer_norm = projections(open_module(decoder_program("phi")).graph)["block[0].attention.q"]
    with pytest.raises(UnsupportedGraph, match="cannot rotate") as caught:
        rms_norm_before(layer_norm)
    assert len(str(caught.value).splitlines()) == 3
