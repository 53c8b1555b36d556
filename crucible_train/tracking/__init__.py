"""Experiment tracking outside the training process: what a run wrote down is sent to its trackers from its folder."""
