"""Facts about the hardware, the precision that suits it, and the processes of a distributed run."""
