"""The live page: what a run has learned so far, in a browser, brought up to date by server-sent events."""
