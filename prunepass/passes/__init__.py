"""Passes: each does one kind of step wherever a plan asks for it."""
