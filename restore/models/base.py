"""What every network here promises: any size in, the same size out, at a depth chosen by the call."""

import torch
import torch.nn.functional as F
from torch import nn

from ..depth import resolve_depth
from ..errors import RestoreError


class RestorationModel(nn.Module):
    """``model(x, depth=None)`` for ``x`` of shape (n, 3, h, w), RGB in [0, 1], any h and w from 1.

    The output has the size of the input and is **not clamped**, so that a loss sees what saturates. A subclass sets
    the class attributes below and writes :meth:`restore`, which may rely on sides that are multiples of
    ``multiple`` and at least ``minimum``; padding and cropping happen here and nowhere else.

    ``name``: what :func:`restore.create_model` calls it. ``config``: its constructor's arguments, JSON-able.
    ``depths``: its depths by name; empty for a network of one fixed depth. ``levels``: repeats in a depth.
    """

    name = ""
    multiple = 8
    minimum = 8
    levels = 0

    def __init__(self, config, depths=None, default_depth=None):
        super().__init__()
        self.config = config
        self.depths = {key: tuple(value) for key, value in (depths or {}).items()}
        self.default_depth = default_depth
        self.provenance = {}
        for key in self.depths:
            self.repeats(key)                # a depth that cannot run is refused when the network is made
        if default_depth is not None:
            self.repeats(default_depth)

    def restore(self, x, repeats):
        """The network proper, on a padded batch; ``repeats`` is a tuple, or ``()`` where the depth is fixed."""
        raise NotImplementedError(type(self).__name__)

    def repeats(self, depth=None):
        """The tuple of repeats that ``depth`` means here; raises :class:`RestoreError` for one it does not take."""
        if depth is None and self.default_depth is None:
            return ()
        return resolve_depth(depth, self.depths, self.default_depth, self.levels, self.name)

    def forward(self, x, depth=None):
        if x.ndim != 4 or x.shape[1] != 3 or 0 in x.shape:
            raise RestoreError(f"{self.name} takes a batch of RGB images of shape (n, 3, h, w), not {tuple(x.shape)}")
        repeats = self.repeats(depth)
        height, width = x.shape[-2:]
        padded = pad_to_multiple(x, self.multiple, self.minimum)
        return self.restore(padded, repeats)[..., :height, :width]


def pad_to_multiple(x, multiple, minimum):
    """``x`` (n, c, h, w) grown at the right and the bottom until its sides are multiples and large enough.

    Mirrors the image as long as there is something to mirror, and repeats the border where it is narrower than
    what must be added (reflection needs a side longer than the padding).
    """
    for dim, side in ((-1, x.shape[-1]), (-2, x.shape[-2])):
        missing = max(minimum, -(-side // multiple) * multiple) - side
        while missing:
            step = min(missing, x.shape[dim] - 1)
            pad = [0, step or missing, 0, 0] if dim == -1 else [0, 0, 0, step or missing]
            x = F.pad(x, pad, mode="reflect" if step else "replicate")
            missing -= step or missing
    return x


def channels_last(x):
    """Pixels outermost in memory: layer norms, 1x1 and depthwise convolutions all read channels together."""
    return x.contiguous(memory_format=torch.channels_last)
