"""From rows to batches: reading conversations, rendering them, the order of examples."""
