"""CrucibleTrain: post-training for language models as an orchestrated pipeline."""

__version__ = "0.1.0"
