"""Scoring and selection rules: pure torch functions, one idea a file, listed in `table`."""
