"""Readers of published data sets in the layouts their authors ship, and the two demonstrations."""
