"""Reinforcement learning: environments, rollouts, advantages, and what becomes of trajectories.

Axes: P problems of a step, G samples of a problem (its group), T tokens.
"""
