"""Many trainings: the rows of tables (`fastft sweep`)."""
