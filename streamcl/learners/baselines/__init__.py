"""Learners for comparison, as published, with one optimizer step a batch."""
