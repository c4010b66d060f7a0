"""One step: its layout, the running batch that packs it, the runner that computes it, its CUDA graphs."""
