"""Rows from files, folders, fsspec URLs and hub ids, each with the place it came from."""
