"""Augmentation: a policy gives plans, a plan gives pixels."""
