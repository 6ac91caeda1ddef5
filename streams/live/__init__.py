"""Sources without an end: growing folders, brokers, cameras, and a spool for those that cannot go back."""
