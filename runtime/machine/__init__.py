"""What a service asks of the machine that it runs on: open files, memory, folders, sockets. No actor is known here."""
