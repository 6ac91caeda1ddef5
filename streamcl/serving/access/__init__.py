"""Who may use a server, how often and with what, and the log of it."""
