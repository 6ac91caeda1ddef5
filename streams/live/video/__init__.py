"""Readers of videos and cameras, whose frames another process decodes."""
