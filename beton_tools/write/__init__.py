"""Convert images to `.beton` files: workers, pages, journal."""
