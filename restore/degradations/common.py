"""What the degradations share: the contract on images, and the drawing of numbers and smooth fields."""

import functools
import math

import torch
import torch.nn.functional as F


def per_image(function):
    """Let ``function``, written for one image (3,h,w), take a batch (n,3,h,w) too, and check what it is given.

    Raises :class:`TypeError` or :class:`ValueError` for anything but a float32 image of three channels: these are
    a programmer's errors, not a user's.
    """
    @functools.wraps(function)
    def degrade(image, generator=None, **strength):
        if not torch.is_tensor(image) or image.dtype != torch.float32:
            raise TypeError(f"{function.__name__} takes a float32 tensor, not {getattr(image, 'dtype', type(image))}")
        if image.dim() == 4:
            return torch.stack([degrade(one, generator, **strength) for one in image]) if len(image) else image.clone()
        if image.dim() != 3 or image.shape[0] != 3 or 0 in image.shape:
            raise ValueError(f"{function.__name__} takes an image (3,h,w) or a batch (n,3,h,w), not "
                             f"{tuple(image.shape)}")
        return function(image, generator, **strength)
    return degrade


def draw(generator, low, high):
    """One float, uniform in [low, high)."""
    return low + (high - low) * torch.rand((), generator=generator, device=generator.device).item()


def draw_log(generator, low, high):
    """One float, uniform on the logarithmic scale between two positive bounds."""
    return math.exp(draw(generator, math.log(low), math.log(high)))


def draw_index(generator, weights):
    """One index into ``weights``, with probability in proportion to them."""
    point = draw(generator, 0, sum(weights))
    for index, weight in enumerate(weights):
        point -= weight
        if point < 0:
            return index
    return max(i for i, weight in enumerate(weights) if weight > 0)


def smooth_field(height, width, generator, cells):
    """A random field (h,w) in [0,1] that varies over about ``cells`` grid cells along the longer side."""
    step = max(height, width) / cells
    rows, columns = (math.ceil(n / step) + 1 for n in (height, width))
    grid = torch.rand(1, 1, rows, columns, generator=generator, device=generator.device)
    return F.interpolate(grid, (height, width), mode="bilinear", align_corners=True)[0, 0]
