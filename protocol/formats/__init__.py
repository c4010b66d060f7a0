"""The formats in which models write thoughts and calls of tools, and their parsers, for clients of both protocols."""
