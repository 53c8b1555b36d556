"""The pipeline's stages: each reads part of the configuration and some artifacts, and makes one artifact."""
