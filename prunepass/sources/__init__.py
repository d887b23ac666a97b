"""Where models, weights and pictures come from: timm, transformers, our own, a user's file."""
