"""`fastft demo`: real photographs and a pretrained ViT, from package to picture in minutes on a CPU."""
