"""Recipes: each reads from top to bottom as its method is described."""
