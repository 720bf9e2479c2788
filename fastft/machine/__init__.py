"""Facts about the hardware, and `fastft doctor`."""
