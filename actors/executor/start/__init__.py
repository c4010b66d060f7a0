"""How an executor starts: its device is found, its weights come into memory, and what computes steps is made."""
