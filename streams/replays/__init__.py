"""Readers of published data sets in the layouts that their authors ship: each returns (train, test)."""
