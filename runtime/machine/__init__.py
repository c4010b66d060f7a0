"""Access to the machine that a service runs on: open files, memory, folders, sockets. No actor is known here."""
