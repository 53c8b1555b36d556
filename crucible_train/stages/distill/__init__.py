"""The stages of distillation: measure, train, package; their plan and what is looked at before a run."""
