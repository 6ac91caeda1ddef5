"""The lineage: which samples have passed, which were learned with which features, and their selection."""
