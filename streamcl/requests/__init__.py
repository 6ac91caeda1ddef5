"""Requests to forget, and late labels: both refer to records that have come before."""
