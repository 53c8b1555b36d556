"""Metrics loggers, one a file."""
