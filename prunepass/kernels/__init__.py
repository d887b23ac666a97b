"""Kernels: products that read less memory than the dense ones, one a place."""
