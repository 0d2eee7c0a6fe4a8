"""Random masking in square patches, as in masked-image pre-training (He et al. 2022; MaskDCPT for restoration)."""

import math

import torch

from .common import draw, per_image


@per_image
def mask(image, generator, *, patch=16, ratio=0.5, fill=0.0):
    """``image`` with the share ``ratio`` of its patches painted over with ``fill`` (a number or three, in [0,1]).

    See :func:`mask_pattern` for which ones; call that with an equal generator to know where the mask lies.
    """
    hidden = mask_pattern(*image.shape[-2:], generator, patch=patch, ratio=ratio)
    colour = torch.as_tensor(fill, dtype=image.dtype, device=image.device).expand(3)[:, None, None]
    return torch.where(hidden, colour, image)


def mask_pattern(height, width, generator, *, patch=16, ratio=0.5):
    """Boolean (h,w), true where the image is hidden: an exact share of the patches, drawn without replacement.

    The grid of ``patch`` x ``patch`` pixels starts at the upper left; patches at the right and lower border may be cut.
    Of N patches ``ratio * N`` are hidden; where that is no whole number, the one below or above at random, so that the
    share is right on average even if the image is smaller than a patch.
    """
    if patch < 1 or not 0 <= ratio <= 1:
        raise ValueError(f"patch must be at least 1 and ratio in [0,1], not {patch} and {ratio}")
    rows, columns = math.ceil(height / patch), math.ceil(width / patch)
    count = math.floor(ratio * rows * columns + draw(generator, 0, 1))
    order = torch.rand(rows * columns, generator=generator, device=generator.device).argsort(stable=True)
    chosen = torch.zeros(rows * columns, dtype=torch.bool, device=generator.device)
    chosen[order[:count]] = True
    grid = chosen.view(rows, 1, columns, 1).expand(rows, patch, columns, patch)
    return grid.reshape(rows * patch, columns * patch)[:height, :width]
