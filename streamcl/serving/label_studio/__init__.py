"""A machine-learning backend for Label Studio: predictions out, annotations in."""
