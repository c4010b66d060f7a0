"""How models write what is not their answer: thoughts and calls of tools. Read here, for clients of both protocols."""
