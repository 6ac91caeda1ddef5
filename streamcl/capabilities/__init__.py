"""Capabilities of a learner beyond learning and predicting, declared by the learner itself."""
