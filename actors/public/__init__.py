"""Shared by the actors that clients speak to: connections, greetings, and questions about the service."""
