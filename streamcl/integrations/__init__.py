"""Adapters that present streamcl's learners to other libraries."""
