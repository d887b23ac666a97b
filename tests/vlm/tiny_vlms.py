"""Vision-language models of transformers with a few thousand random weights, one a family."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

LAYERS = 4
IMAGE = 3
"""Number of the image token."""
VOCABULARY = 48
SIDE = 32
"""Pixels of a picture."""

TEXT: dict[str, Any] = {
    "hidden_size": 32, "intermediate_size": 56, "num_hidden_layers": LAYERS,
    "num_attention_heads": 4, "num_key_value_heads": 2, "vocab_size": VOCABULARY,
    "max_position_embeddings": 512, "eos_token_id": None, "bos_token_id": 1, "pad_token_id": 0,
    "tie_word_embeddings": False,
}  # fmt: skip
VISION: dict[str, Any] = {
    "hidden_size": 24, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 2,
    "image_size": SIDE, "patch_size": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Family:
    """How a family is built and asked.

    Attributes:
        make: Its tiny model, in eval mode with random weights.
        image_size: What `compile` is told.
        inputs: Pictures [I, ...] to what the model takes of them.
        pixels: Of one picture.
        kinds: What `generate` is told of kinds of tokens: name, and of token numbers [B, T] which.
    """

    make: Callable[[], Any]
    inputs: Callable[[Tensor], dict[str, Tensor]] = lambda pixels: {"pixel_values": pixels}
    image_size: tuple[int, int] | None = None
    pixels: tuple[int, ...] = (3, SIDE, SIDE)
    kinds: Mapping[str, Callable[[Tensor], Tensor]] = field(default_factory=dict)


def random_weights(model: Any, std: float = 0.2) -> Any:
    """The model with weights so large that no two logits come near each other."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            if weight.dim() > 1:
                weight.normal_(0.0, std, generator=generator)
    model.generation_config.eos_token_id = None
    return model.eval()


def llava() -> Any:
    import transformers as t

    text, vision = t.LlamaConfig(**TEXT), t.CLIPVisionConfig(**VISION)
    config = t.LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=16
    )
    return random_weights(t.LlavaForConditionalGeneration(config))


POINTS = [[32, 64], [64, 32], [64, 64]]


def llava_next() -> Any:
    import transformers as t

    text, vision = t.LlamaConfig(**TEXT), t.CLIPVisionConfig(**VISION)
    config = t.LlavaNextConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, image_seq_length=16,
        image_grid_pinpoints=POINTS,
    )  # fmt: skip
    return random_weights(t.LlavaNextForConditionalGeneration(config))


def llava_onevision() -> Any:
    import transformers as t

    text, vision = t.Qwen2Config(**TEXT), t.SiglipVisionConfig(**VISION)
    config = t.LlavaOnevisionConfig(
        vision_config=vision, text_config=text, image_token_index=IMAGE, video_token_index=4,
        image_grid_pinpoints=POINTS, vision_aspect_ratio="anyres_max_9",
    )  # fmt: skip
    return random_weights(t.LlavaOnevisionForConditionalGeneration(config))


ROPE = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": [1, 1, 2]}
TOKENS = {"image_token_id": IMAGE, "video_token_id": 4, "vision_start_token_id": 5,
          "vision_end_token_id": 6}  # fmt: skip


def qwen2_vl() -> Any:
    import transformers as t

    vision = {
        "depth": 2, "embed_dim": 24, "hidden_size": 32, "num_heads": 2, "mlp_ratio": 2,
        "patch_size": 4, "spatial_merge_size": 2, "temporal_patch_size": 2,
    }  # fmt: skip
    config = t.Qwen2VLConfig(
        vision_config=vision, text_config={**TEXT, "rope_parameters": ROPE}, **TOKENS
    )
    return random_weights(t.Qwen2VLForConditionalGeneration(config))


def qwen2_5_vl() -> Any:
    import transformers as t

    vision = {
        "depth": 2, "hidden_size": 24, "out_hidden_size": 32, "num_heads": 2,
        "intermediate_size": 48, "patch_size": 4, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "window_size": 16, "fullatt_block_indexes": [1],
    }  # fmt: skip
    config = t.Qwen2_5_VLConfig(
        vision_config=vision, text_config={**TEXT, "rope_parameters": ROPE}, **TOKENS
    )
    return random_weights(t.Qwen2_5_VLForConditionalGeneration(config))


def qwen3_vl() -> Any:
    import transformers as t

    vision = {
        "depth": 3, "hidden_size": 24, "out_hidden_size": 32, "num_heads": 2,
        "intermediate_size": 48, "patch_size": 4, "spatial_merge_size": 2,
        "temporal_patch_size": 2, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1],
    }  # fmt: skip
    text = {**TEXT, "head_dim": 8, "rope_parameters": ROPE}
    config = t.Qwen3VLConfig(vision_config=vision, text_config=text, **TOKENS)
    return random_weights(t.Qwen3VLForConditionalGeneration(config))


def paligemma() -> Any:
    import transformers as t

    text = t.GemmaConfig(**{**TEXT, "head_dim": 8, "num_key_value_heads": 1})
    vision = t.SiglipVisionConfig(**VISION)
    config = t.PaliGemmaConfig(
        vision_config=vision, text_config=text, image_token_index=VOCABULARY, projection_dim=32,
        hidden_size=32,
    )  # fmt: skip
    return random_weights(t.PaliGemmaForConditionalGeneration(config))


def gemma3() -> Any:
    import transformers as t

    text = t.Gemma3TextConfig(
        **TEXT, head_dim=8, sliding_window=64, query_pre_attn_scalar=8, sliding_window_pattern=2
    )
    vision = t.SiglipVisionConfig(**VISION)
    config = t.Gemma3Config(
        vision_config=vision, text_config=text, image_token_index=IMAGE, boi_token_index=5,
        eoi_token_index=6, mm_tokens_per_image=16,
    )  # fmt: skip
    return random_weights(t.Gemma3ForConditionalGeneration(config))


def mistral3() -> Any:
    import transformers as t

    config = t.Mistral3Config(
        vision_config=t.PixtralVisionConfig(
            **{**VISION, "patch_size": 4, "head_dim": 12, "image_size": 64}
        ),
        text_config=t.MistralConfig(**TEXT), image_token_index=IMAGE, spatial_merge_size=2,
    )  # fmt: skip
    return random_weights(t.Mistral3ForConditionalGeneration(config))


def idefics3() -> Any:
    import transformers as t

    config = t.Idefics3Config(
        vision_config={**VISION, "patch_size": 4}, text_config=t.LlamaConfig(**TEXT),
        image_token_id=IMAGE, scale_factor=2,
    )  # fmt: skip
    return random_weights(t.Idefics3ForConditionalGeneration(config))


def smolvlm() -> Any:
    import transformers as t

    config = t.SmolVLMConfig(
        vision_config={**VISION, "patch_size": 4}, text_config=t.LlamaConfig(**TEXT),
        image_token_id=IMAGE, scale_factor=2,
    )  # fmt: skip
    return random_weights(t.SmolVLMForConditionalGeneration(config))


def internvl() -> Any:
    import transformers as t

    vision = t.InternVLVisionConfig(**{**VISION, "image_size": [SIDE, SIDE], "patch_size": [4, 4]})
    config = t.InternVLConfig(
        vision_config=vision, text_config=t.Qwen2Config(**TEXT), image_token_id=IMAGE,
        image_seq_length=16,
    )  # fmt: skip
    return random_weights(t.InternVLForConditionalGeneration(config))


def _grid(pixels: Tensor) -> dict[str, Tensor]:
    """What the Qwen-VL processors make of a picture that needs no resizing."""
    from transformers import Qwen2VLImageProcessor

    processor = Qwen2VLImageProcessor(
        do_resize=False, do_rescale=False, do_normalize=False, do_convert_rgb=False, patch_size=4,
        merge_size=2, temporal_patch_size=2,
    )  # fmt: skip
    found = processor(
        images=list(pixels.numpy()), return_tensors="pt", input_data_format="channels_first"
    )
    return {name: found[name] for name in ("pixel_values", "image_grid_thw")}


def _tiles(pixels: Tensor) -> dict[str, Tensor]:
    return {"pixel_values": pixels, "image_sizes": torch.tensor([[40, 60]] * len(pixels))}


def _image(ids: Tensor) -> Tensor:
    return (ids == IMAGE).long()


QWEN: dict[str, Any] = {
    "inputs": _grid, "image_size": (32, 48), "pixels": (3, 32, 48),
    "kinds": {"mm_token_type_ids": _image},
}  # fmt: skip
TILES: dict[str, Any] = {
    "inputs": _tiles,
    "image_size": (40, 60), "pixels": (5, 3, SIDE, SIDE),
}  # fmt: skip
FAMILIES: dict[str, Family] = {
    "llava": Family(llava),
    "llava-next": Family(llava_next, **TILES),
    "qwen2-vl": Family(qwen2_vl, **QWEN),
    "qwen2.5-vl": Family(qwen2_5_vl, **QWEN),
    "paligemma": Family(paligemma, kinds={"token_type_ids": torch.zeros_like}),
    "idefics3": Family(idefics3, lambda pixels: {"pixel_values": pixels[None]}),
    "smolvlm": Family(smolvlm, lambda pixels: {"pixel_values": pixels[None]}),
    "internvl": Family(internvl),
    "llava-onevision": Family(llava_onevision, **TILES),
    "mistral3": Family(
        mistral3,
        lambda pixels: {
            "pixel_values": pixels,
            "image_sizes": torch.tensor([[48, 40]] * len(pixels)),
        },
        image_size=(48, 40),
        pixels=(3, 48, 40),
    ),
    "qwen3-vl": Family(qwen3_vl, **QWEN),
    "gemma3": Family(gemma3, kinds={"token_type_ids": _image}),
}


def pictures(family: Family, seed: int, images: int = 1) -> Tensor:
    """Random pictures [I, ...] as a bundle of a family takes them."""
    generator = torch.Generator().manual_seed(100 + seed)
    return torch.randn(images, *family.pixels, generator=generator)


def prompt_of(model: Any, images: int = 1) -> list[int]:
    """Tokens of a prompt, one for each image."""
    token = getattr(model.config, "image_token_id", None)
    image = model.config.image_token_index if token is None else token
    return [1, 7, 8, *[image, 9] * images, 10, 11, 12, 20, 33]


def model_inputs(family: Family, tokens: list[int], pixels: Tensor) -> dict[str, Tensor]:
    """What the model itself takes of a prompt that has all of its image tokens."""
    ids = torch.tensor([tokens])
    return {
        "input_ids": ids, "attention_mask": torch.ones_like(ids), **family.inputs(pixels),
        **{name: kinds(ids) for name, kinds in family.kinds.items()},
    }  # fmt: skip
