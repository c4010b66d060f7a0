"""One step: its layout, the running batch that packs it, the program that computes it, its CUDA graphs."""
