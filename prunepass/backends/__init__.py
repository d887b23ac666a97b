"""Backends: from a program to an engine that runs, and nothing else."""
