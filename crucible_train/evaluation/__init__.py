"""Measuring a model on held-out data, with intervals."""
