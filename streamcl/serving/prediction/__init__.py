"""Predictions in processes of their own, by the newest snapshot of a run."""
