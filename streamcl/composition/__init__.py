"""The composition root, one module a part; what others make runs with is in `streamcl.build`."""
