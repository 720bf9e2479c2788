"""`fastft demo`: fine-tune a pretrained ViT on real photographs within minutes on a CPU."""
