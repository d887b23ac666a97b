"""Importance of layers: measured on a captured program, batch by batch."""
