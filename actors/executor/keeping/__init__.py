"""Weights that outlive an executor: in memory that is a file, with a table of what is where."""
