"""Where a run's records go: the run directory's JSON Lines always, services and plug-ins by name."""
