"""Checks around an erasure: utility on held-out samples, and whether erased data have come back."""
