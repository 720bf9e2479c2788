"""Whole jobs, from data to result: one training (`fastft.fit`, `fastft train`), the rows of tables (`fastft sweep`)."""
