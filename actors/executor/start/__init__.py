"""The start of an executor: finds its device, loads its weights, and builds the engine that computes steps."""
