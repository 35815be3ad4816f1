"""FastSAM: from the two tensors of the network to masks, and from a prompt to a mask. Pure functions; no network is opened here.

Coordinates are continuous: pixel j covers j to j + 1. Boxes are x1, y1, x2, y2. "Input" is the network's padded input, "image"
the user's picture.
"""
