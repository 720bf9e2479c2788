"""Whole jobs, from data to result: one run (`fastft.fit`, `fastft train`) or rows in tables (`fastft sweep`)."""
