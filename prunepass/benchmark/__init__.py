"""Bundles held against each other on this machine: time, load, memory, and where the time goes."""
