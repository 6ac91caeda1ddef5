"""Benchmark suites: learners x protocols x seeds over named sources, resumable cell by cell."""
