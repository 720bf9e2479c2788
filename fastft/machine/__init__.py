"""Facts about the hardware, the precision that suits it, and the processes in a distributed run."""
