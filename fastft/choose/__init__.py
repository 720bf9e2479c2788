"""Every option of a recipe gets its final value: rules by the number of images, then linear probes of the frozen tower."""
