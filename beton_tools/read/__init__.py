"""Read `.beton` files: format, manifest, sets of several files."""
