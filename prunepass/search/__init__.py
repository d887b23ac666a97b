"""Planners that run drafts: they need passes, measuring and, for latency, a backend."""
