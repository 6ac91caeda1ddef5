"""Answers requests over HTTP while a run learns: snapshots in, predictions out."""
