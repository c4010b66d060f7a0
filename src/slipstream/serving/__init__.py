"""A service or a router, from its options to the processes that run under a supervisor, and to its exit code."""
