"""Concrete sources: data-set replays, scenario orders, custom iterators, the built-in demonstration."""
