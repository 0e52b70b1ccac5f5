"""Measurements behind the speed claims: `python -m tests.bench`."""
