"""The stages of learning from preferences: prepare, render, reference, measure, train, package; their plan."""
