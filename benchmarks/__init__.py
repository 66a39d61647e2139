"""Benchmarks: every number that is claimed comes from one of these."""
