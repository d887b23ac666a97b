"""Measuring: time, fidelity, and the machine they were taken on."""
