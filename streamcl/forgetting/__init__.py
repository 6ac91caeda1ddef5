"""Forgetting on request: methods behind one Protocol, the way from request to receipt, and its proof."""
