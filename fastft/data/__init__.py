"""`.beton` files to batches: order, decode, augmentation and exact evaluation, in a thread that works ahead of training."""
