"""The CUDA decoder's graph in plain numpy, for machines without a card."""
