"""For clients in other languages: the reference of the messages, and golden vectors."""
