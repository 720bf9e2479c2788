"""Look into `.beton` files: verification, contact sheets, extraction."""
