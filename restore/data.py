"""Training samples by number: sample k of a set depends on (seed, k) and on nothing else, and so does every batch."""

import numpy as np
import torch


def numpy_rng(seed, k):
    """Random numbers for the choices of sample ``k``: crop, flips, strengths."""
    return np.random.default_rng([seed, k])


def torch_generator(seed, k, device="cpu"):
    """Random numbers for the pixels of sample ``k``: noise, masks, rain. On another device they are other numbers."""
    state = np.random.SeedSequence([seed, k, 1]).generate_state(1, np.uint64)[0]
    return torch.Generator(device).manual_seed(int(state) & (2**63 - 1))


def random_window(height, width, size, rng):
    """Place and turn of a crop, the same for each image of a pair: ``(top, left, turns 0..3, flip)``."""
    raise NotImplementedError


def crop(image, size, window):
    """The crop (3, size, size) float32 in [0, 1] of ``image``, uint8 (h, w, 3); smaller images are mirrored up to the size."""
    raise NotImplementedError


def order(seed, k, count):
    """Index of the image for sample ``k``: every image once per pass over ``count`` images, in another order each time."""
    raise NotImplementedError


def batches(samples, batch_size, start_step=0, workers=0, rank=0, world=1):
    """Endless batches: step s on ``rank`` holds samples ``(s * world + rank) * batch_size ...``, whatever the workers."""
    raise NotImplementedError
