"""The stages of reinforcement learning: measure, train, package; their plan and what is looked at before a run."""
