"""The exit codes of a command, for the shell and for process managers."""

DONE = 0
"""All that a service accepted was answered in full."""

USAGE = 2
"""The command line is wrong, or an extra is missing."""

COULD_NOT_START = 3

FAILED = 4
"""While it ran."""

INTERRUPTED = 130
"""By Ctrl-C, as shells have it."""
