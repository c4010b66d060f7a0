"""How an actor lives in a process: the child, the host of its sockets and loop, and its rank among the threads."""
