"""Test-then-train and held-out accuracy, shifts found, speed and memory."""
