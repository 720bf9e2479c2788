"""The loaders that are compared: one file per library, each built as its own documentation recommends.

A file lists its loaders in `LOADERS`. To add one, write such a file and name it in `PEERS` in
fastft/recipe/constants.py.
"""
