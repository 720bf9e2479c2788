"""Predict a recipe's FLOPs, memory traffic and GPU-hours, and explain the recipe."""
