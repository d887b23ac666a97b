"""Planners: from a budget to a plan."""
