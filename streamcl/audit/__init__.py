"""Audits: is an erased model like models retrained without the data? Import from the modules."""
