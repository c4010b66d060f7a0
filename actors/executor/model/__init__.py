"""A model of transformers: load it, refuse what would run and be wrong, make it fast."""

import os

# Read when transformers is imported, which would fetch kernels from the Hub when they are first called.
os.environ["USE_HUB_KERNELS"] = "NO"
