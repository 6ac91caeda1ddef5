"""Readers of listings that grow: folders, and buckets of object stores."""
