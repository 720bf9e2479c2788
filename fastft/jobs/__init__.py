"""Whole jobs, from data to result: one run (`fastft.fit`, `fastft train`) or the rows of tables (`fastft sweep`)."""
