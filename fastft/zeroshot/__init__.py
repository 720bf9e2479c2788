"""CLIP's zero-shot classifier: text embeddings of class names as the head of the image tower."""
