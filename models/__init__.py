"""Models that export, small trained subjects with their weights, and measured plans.

Importing this package imports nothing heavy; each module imports what it needs where it needs it.
"""
