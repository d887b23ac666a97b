"""Measuring: time, gains, load, memory, energy, fidelity, and the machine they were taken on."""
