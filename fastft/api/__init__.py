"""The Python API: `fastft.fit`, and the training of photographs and refits behind it and `fastft train`."""
