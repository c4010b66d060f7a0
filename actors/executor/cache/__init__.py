"""What a model keeps between steps: keys and values in blocks, which a step's batch points into, and states."""
