"""Reads, checks and describes the YAML of a run."""
