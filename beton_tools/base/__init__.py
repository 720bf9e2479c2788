"""Modules that the whole package uses: errors, safe reading and writing of files, console, progress, signals, JIT cache."""
