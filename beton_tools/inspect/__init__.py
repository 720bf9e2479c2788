"""Look into `.beton` files: statistics, verification, contact sheets, extraction."""
