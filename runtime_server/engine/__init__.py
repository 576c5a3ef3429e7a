"""Continuous batching: requests in, tokens out, one thread per model."""
