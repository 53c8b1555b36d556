"""What every recipe's loop shares: state, cadence, checkpoints, resuming, stopping early or on request."""
