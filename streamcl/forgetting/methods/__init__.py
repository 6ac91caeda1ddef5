"""One module a forgetting method, what methods share, and how one is selected."""
