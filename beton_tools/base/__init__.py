"""Modules that the whole package uses: errors, safe reading and writing, console, progress, signals and JIT cache."""
