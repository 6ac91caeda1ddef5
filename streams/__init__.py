"""Concrete sources: data-set replays, scenario orders, custom iterators and the built-in demonstration stream."""
