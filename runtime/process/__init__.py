"""The process of an actor: its start and end, the host with its sockets and loop, its priority."""
