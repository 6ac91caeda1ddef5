"""Everything durable: files written whole, checkpoints, SQLite files, locks and hash chains."""
