"""Many trainings: the rows of tables (`fastft sweep`), and learning rates within a time budget (`fastft tune`)."""
