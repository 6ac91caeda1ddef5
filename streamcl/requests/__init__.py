"""The terms of a request to forget, the same in YAML, on the command line, in a stream and in Python."""
