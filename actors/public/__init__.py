"""What actors that clients speak to have in common: connections, greetings, and answers about the service."""
