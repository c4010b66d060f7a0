"""The supervisor: starts the children, watches them, restarts them and stops them."""
