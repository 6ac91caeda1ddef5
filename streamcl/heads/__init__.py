"""Heads: from features to class scores, by gradient (`linear`) or in closed form (`ridge`)."""
