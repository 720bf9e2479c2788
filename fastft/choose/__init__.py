"""Give every option in a recipe its final value: by rules that use the number of images, then by linear probes."""
