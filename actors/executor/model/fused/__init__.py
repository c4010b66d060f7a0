"""A decoder of four matrix products, attention and a few small kernels a layer, made of one of transformers."""
