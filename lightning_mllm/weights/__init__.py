"""Weights in files: reading and writing, key maps, the hand-over between stages."""
