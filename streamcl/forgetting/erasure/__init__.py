"""One erasure: its plan, what it reaches of a run, and its execution in memory and on disk."""
