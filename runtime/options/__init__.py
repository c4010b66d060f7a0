"""Options from one table: the command line, the environment, a file and keywords."""
