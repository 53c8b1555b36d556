"""Thin Prefect tasks: each runs one stage of the core, and shows in Prefect whether its artifact was found or made."""
