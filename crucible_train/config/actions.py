"""What a command line can ask for instead of a run, and the flags it is asked with."""

ACTIONS = ("help", "help_all", "schema", "dry_run")
"""From the one that wins over the others to the one that any of them beats."""
FLAGS = tuple(f"--{name.replace('_', '-')}" for name in (*ACTIONS, "config"))
"""As they are written."""
