"""Sources over a user's own data: reads records in any accepted form and turns them into samples."""
