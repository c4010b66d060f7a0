"""The products of a model's weights on a GPU, where ours are ahead of cuBLAS or add in an order of their own."""
