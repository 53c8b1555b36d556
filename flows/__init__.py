"""Prefect flows: ``python -m flows.sft``."""
