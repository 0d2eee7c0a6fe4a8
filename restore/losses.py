"""Losses between a restored batch and its target, both (n, 3, h, w); the output is never clamped before a loss.

Clamping would kill the gradient of every saturated pixel. All are means over the batch, computed in float32.
"""

import torch
from torch import nn

from .errors import RestoreError


class L1(nn.Module):
    """Mean absolute difference."""

    def forward(self, output, target):
        return (output.float() - target.float()).abs().mean()


class Charbonnier(nn.Module):
    """Mean of sqrt(d² + epsilon²): L1 with a round bottom (Charbonnier et al. 1994). ``epsilon`` in units of [0, 1]."""

    def __init__(self, epsilon=1e-3):
        super().__init__()
        if epsilon <= 0:
            raise RestoreError(f"epsilon: {epsilon} must be positive")
        self.epsilon = epsilon

    def forward(self, output, target):
        return torch.sqrt((output.float() - target.float()).square() + self.epsilon**2).mean()


class FrequencyL1(nn.Module):
    """L1 plus ``weight`` times the mean absolute difference of real and imaginary parts of the 2-D FFT, not normalised.

    The form of MIMO-UNet (arXiv 2108.05054), on the half spectrum that a real image has.
    """

    def __init__(self, weight=0.1):
        super().__init__()
        if weight < 0:
            raise RestoreError(f"weight: {weight} is negative")
        self.weight = weight

    def forward(self, output, target):
        difference = output.float() - target.float()           # the FFT is linear: one transform of the difference
        spectrum = torch.view_as_real(torch.fft.rfft2(difference))
        return difference.abs().mean() + self.weight * spectrum.abs().mean()


LOSSES = {"l1": L1, "charbonnier": Charbonnier, "frequency": FrequencyL1}


def build_loss(name, **options):
    """The loss of that name; raises RestoreError for an unknown one."""
    if name not in LOSSES:
        raise RestoreError(f"loss: {name!r} is none of {', '.join(LOSSES)}")
    return LOSSES[name](**options)
