"""Modules that keep a state of each sequence: found by running the model, tried, and run over the state slots."""
