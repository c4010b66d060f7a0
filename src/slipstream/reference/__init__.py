"""What a client in another language needs: the reference of the messages, and golden vectors."""
