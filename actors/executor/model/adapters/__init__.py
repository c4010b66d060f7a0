"""Adapters: small weights beside those of the model, several of them in one step."""
