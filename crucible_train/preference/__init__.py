"""Learning from preferences: its configuration, the datums of a step, the reference, and what is measured."""
