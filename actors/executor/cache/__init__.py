"""The paged key-value cache: the shape of what a model keeps, its memory, and the view that attention has of it."""
