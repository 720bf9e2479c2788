"""The pixel format: every image that is stored, decoded and augmented is RGB, with a byte per value."""

CHANNELS = 3
