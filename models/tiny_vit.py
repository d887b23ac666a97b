"""A small plain vision transformer for the generated pictures of `prunepass.models.pictures`."""

from torch import nn

from .pictures import CLASSES


def tiny_vit() -> nn.Module:
    """A ViT with random weights in train mode: images [B, 3, 96, 96] -> logits [B, 12].

    T = 145 tokens: the class token, then 12 x 12 image tokens of 8 x 8 pixels; C = 128 channels,
    8 blocks, 4 heads, 1.6 million parameters. The class token is what the head reads. Random
    numbers come from torch's global generator. Needs timm.
    """
    from timm.models.vision_transformer import VisionTransformer

    return VisionTransformer(
        img_size=96,
        patch_size=8,
        num_classes=len(CLASSES),
        embed_dim=128,
        depth=8,
        num_heads=4,
        mlp_ratio=4.0,
        class_token=True,
        global_pool="token",
    )
