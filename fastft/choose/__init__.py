"""Give every option of a recipe its final value: by rules on the number of images, then by linear probes."""
