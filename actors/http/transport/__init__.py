"""How requests come in and answers go out: connections, the arrival of bodies, streams of server-sent events."""
