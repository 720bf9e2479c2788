"""HTML pages for one benchmark result, and for several that are compared."""
