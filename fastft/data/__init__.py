"""Turn `.beton` files into batches, in a thread that works ahead of training.

Covers order, decoding, augmentation and exact evaluation.
"""
