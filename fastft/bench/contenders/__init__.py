"""The libraries that are compared: one file each, with its `ENTRIES`. To add one, write such a file."""
