"""A run directory: opened, resumed, loaded, exported and inspected."""
