"""Receipts of forgetting requests: how they are built, written, shown and verified."""
