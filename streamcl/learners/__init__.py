"""Learners: each composes a backbone, adapters and heads into what predicts and learns a batch at a time."""
