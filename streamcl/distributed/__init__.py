"""Several processes that learn one stream together: collectives, and checks that their states agree."""
