"""Counted multiply-accumulates of eight architectures against their closed forms, stated here.

N tokens, D width, M width of the MLP, L layers, P pixels a side of a patch, V outputs of the head.
"""

from __future__ import annotations

from math import ceil
from typing import Any

import pytest
import timm
import torch
from prunepass.models.plain_mamba import PlainMamba
from prunepass.models.vim import Vim
from torch import Tensor, nn
from torch.export import ExportedProgram

from prunepass.analyse.counting import Counts, counts
from prunepass.graph import meta
from prunepass.vlm.macs import image_token_macs, prefill_macs
from prunepass.vlm.patches import pictures_of
from prunepass.vlm.programs import capture_language, capture_vision
from prunepass.vlm.split import split
from tests.vlm.tiny_vlms import FAMILIES, pictures


def exported(model: nn.Module, *inputs: Tensor) -> ExportedProgram:
    with torch.no_grad():
        return torch.export.export(model.eval(), inputs, strict=False)


def block(n: int, d: int, m: int) -> int:
    """Projections 4 N D^2, attention 2 N^2 D, MLP 2 N D M."""
    return 4 * n * d**2 + 2 * n**2 * d + 2 * n * d * m


def decoder_layer(n: int, d: int, m: int, *, shared: int) -> int:
    """Queries and output 2 N D^2, keys and values 2 N D K, attention 2 N^2 D, gated MLP 3 N D M."""
    return 2 * n * d**2 + 2 * n * d * shared + 2 * n**2 * d + 3 * n * d * m


def check(found: Counts, expected: int) -> None:
    assert found.total.macs == pytest.approx(expected, rel=0.01, abs=0)
    assert sum(found.kinds.values()) == found.total.macs
    assert found.uncounted == ()


@pytest.mark.parametrize(
    ("name", "prefix", "heads_read"),
    [("vit_base_patch16_224", 1, 1), ("deit_small_distilled_patch16_224", 2, 2)],
)
def test_vit_and_deit_distilled(name: str, prefix: int, heads_read: int) -> None:
    with torch.device("meta"):  # the real geometry; nothing is computed
        model = timm.create_model(name, pretrained=False)
        program = exported(model, torch.empty(1, 3, 224, 224))
    d, n = model.embed_dim, 196 + prefix
    closed = 196 * d * 3 * 16**2 + 12 * block(n, d, 4 * d) + heads_read * d * 1000
    found = counts(program)
    check(found, closed)
    assert found.total.macs == closed
    assert found.kinds["attention"] == 12 * 2 * n**2 * d
    assert found.kinds["convolution"] == 196 * d * 3 * 16**2
    assert found.total.flops == 2 * closed
    assert found.total.parameters == sum(p.numel() for p in model.parameters())


def test_clip() -> None:
    from transformers import CLIPConfig, CLIPModel

    text = {"hidden_size": 40, "intermediate_size": 96, "num_hidden_layers": 3,
            "vocab_size": 60, "num_attention_heads": 4, "max_position_embeddings": 24,
            "eos_token_id": 59}  # fmt: skip
    vision = {"hidden_size": 48, "intermediate_size": 112, "num_hidden_layers": 2,
              "num_attention_heads": 4, "image_size": 32, "patch_size": 8}  # fmt: skip
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=20)
    model = CLIPModel(config)

    class Both(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor, pixels: Tensor) -> Any:
            return self.model(input_ids=ids, pixel_values=pixels).logits_per_image

    ids = torch.randint(3, 59, (1, 13))
    found = counts(exported(Both(), ids, torch.randn(1, 3, 32, 32)))
    image = 16 * 48 * 3 * 8**2 + 2 * block(16 + 1, 48, 112) + 48 * 20
    words = 3 * block(13, 40, 96) + 40 * 20
    check(found, image + words + 20)


def test_llama_with_grouped_queries() -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    config = LlamaConfig(
        hidden_size=64, intermediate_size=176, num_hidden_layers=3, num_attention_heads=8,
        num_key_value_heads=2, vocab_size=90,
    )  # fmt: skip
    model = LlamaForCausalLM._from_config(config, attn_implementation="sdpa")

    class Prefill(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Tensor) -> Any:
            return self.model(input_ids=ids, use_cache=False).logits

    found = counts(exported(Prefill(), torch.randint(0, 90, (1, 50))))
    closed = 3 * decoder_layer(50, 64, 176, shared=2 * 8) + 50 * 64 * 90
    check(found, closed)
    assert found.total.macs == closed
    assert found.kinds["attention"] == 3 * 2 * 50**2 * 64  # every head of the queries pays


def prompt(model: Any, tokens: int, image_tokens: int, rows: int = 1) -> Counts:
    program = capture_language(
        split(model).language, channels=32, image_tokens=image_tokens, position_rows=rows
    )
    shapes = {
        "inputs_embeds": (1, tokens), "image_positions": (1, 1, image_tokens),
        "asking_positions": (1, 5), "asking_votes": (1, 5), "attention_mask": (1, tokens),
    }  # fmt: skip
    return counts(program, sizes=meta.sizes_for(program.graph, shapes))


def test_llava() -> None:
    model = FAMILIES["llava"].make()
    encoder, _ = capture_vision(split(model).vision, torch.randn(2, 3, 32, 32))
    # The encoder's last layer but one is read, and the class token left out.
    seen = 16 * 24 * 3 * 8**2 + 1 * block(17, 24, 48)
    check(counts(encoder), seen + 16 * (24 * 32 + 32 * 32))
    found = prompt(model, tokens=60, image_tokens=16)
    check(found, 4 * decoder_layer(60, 32, 56, shared=16) + 32 * 48)
    sizes = {"hidden": 32, "intermediate": 56, "layers": 4, "image_tokens": 16}
    honest = prefill_macs(**sizes, kv_hidden=16, text_tokens=44, rows=0, vocabulary=48)
    assert found.total.macs == pytest.approx(honest, rel=0.01, abs=0)
    # As papers count, of image tokens alone, all heads with keys of their own.
    assert image_token_macs(**sizes) == 4 * decoder_layer(16, 32, 56, shared=32)
    blocks = [name for name in found.layers if name.startswith("block")]
    assert blocks == [f"block[{i}]" for i in range(4)]


def test_qwen2_vl() -> None:
    family = FAMILIES["qwen2-vl"]
    model = family.make()
    sizes = pictures_of(model, family.image_size)
    parts = split(model, sizes)
    encoder, _ = capture_vision(parts.vision, pictures(family, 0, 1), alone=True)
    n = 8 * 12  # patches of 4 pixels, two frames each; four of them make a token
    patches = n * 24 * 3 * 2 * 4**2
    merger = n // 4 * (96 * 96 + 96 * 32)
    check(counts(encoder), patches + 2 * block(n, 24, 48) + merger)
    program = capture_language(parts.language, channels=32, image_tokens=n // 4, position_rows=3)
    shapes = {
        "inputs_embeds": (1, 90), "image_positions": (1, 1, n // 4),
        "asking_positions": (1, 5), "asking_votes": (1, 5), "attention_mask": (1, 90),
    }  # fmt: skip
    found = counts(program, sizes=meta.sizes_for(program.graph, shapes))
    angles = 3 * 4 * 90
    check(found, 4 * decoder_layer(90, 32, 56, shared=16) + 32 * 48 + angles)


def scan(n: int, c: int, s: int) -> int:
    """Decay, input and reading of S states a channel, and what is passed by: 3 N C S + N C."""
    return 3 * n * c * s + n * c


def test_vim() -> None:
    d, s, n, depth, classes = 24, 5, 26, 3, 7  # 5 x 5 patches of 8 pixels and a class token
    model = Vim(image_size=40, patch=8, channels=d, depth=depth, states=s, classes=classes)
    inner, rank = 2 * d, ceil(d / 16)
    # One way: a convolution over 4 tokens, what the scan reads, its steps, the scan.
    way = n * inner * 4 + n * inner * (rank + 2 * s) + n * rank * inner + scan(n, inner, s)
    layer = n * d * 2 * inner + 2 * way + n * inner * d
    closed = 25 * d * 3 * 8**2 + depth * layer + d * classes
    found = counts(exported(model, torch.randn(1, 3, 40, 40)))
    check(found, closed)
    assert found.kinds["scan"] == depth * 2 * scan(n, inner, s)


def test_plain_mamba() -> None:
    d, s, n, depth, classes = 24, 5, 25, 3, 7
    model = PlainMamba(image_size=40, patch=8, channels=d, depth=depth, states=s, classes=classes)
    inner, rank = 2 * d, ceil(d / 16)
    # Four ways share what the scans read; each scans for itself. 7 x 7 tokens are convolved.
    read = n * inner * 7**2 + n * inner * (rank + 2 * s) + n * rank * inner
    layer = n * d * 2 * inner + read + 4 * scan(n, inner, s) + n * inner * d
    stem = 20**2 * 64 * 3 * 7**2 + 20**2 * 64 * 64 * 3**2 + n * d * 64 * 4**2
    grid = n * d * 3**2  # behind the first layer alone
    found = counts(exported(model, torch.randn(1, 3, 40, 40)))
    check(found, stem + depth * layer + grid + d * classes)
