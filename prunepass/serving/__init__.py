"""Bundles for model servers."""
