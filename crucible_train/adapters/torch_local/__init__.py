"""The local engine: trains and samples any transformers causal model on this machine's processor or GPU."""
