"""Reads backbone weights from files and checks that they fill the model."""
