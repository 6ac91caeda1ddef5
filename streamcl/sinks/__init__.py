"""The sinks of a run's records: always the run directory's JSON Lines, services and plug-ins by name."""
