"""FLOPs, memory traffic and GPU-hours of a recipe, and its explanation."""
