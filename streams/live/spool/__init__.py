"""The spool: records of sources that cannot go back, on disk before they are learned."""
