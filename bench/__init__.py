"""Benchmarks: ``python -m bench [family]``."""
