"""Distillation: who teaches, what a teacher reads of an answer, and the datums that it makes of it."""
