"""Replays of finished data sets as streams, ordered by scenarios."""
