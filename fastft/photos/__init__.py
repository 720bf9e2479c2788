"""Your own photographs: find the labelled images, hold some out for validation, and convert them once."""
