"""Losses between a restored batch and its target, both (n, 3, h, w); the output is never clamped before a loss.

Clamping would kill the gradient of every saturated pixel. All are means over the batch, computed in float32.
"""

import torch
import torch.nn.functional as F
from torch import nn

from .errors import RestoreError
from .metrics import C1, C2, gaussian_kernel


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


class Frequency(nn.Module):
    """Mean absolute difference of real and imaginary parts of the 2-D FFT, not normalised.

    The form of MIMO-UNet (arXiv 2108.05054), on the half spectrum that a real image has.
    """

    def forward(self, output, target):
        difference = output.float() - target.float()           # the FFT is linear: one transform of the difference
        return torch.view_as_real(torch.fft.rfft2(difference)).abs().mean()


class FrequencyL1(nn.Module):
    """:class:`L1` plus ``weight`` times :class:`Frequency`."""

    def __init__(self, weight=0.1):
        super().__init__()
        if weight < 0:
            raise RestoreError(f"weight: {weight} is negative")
        self.weight, self.l1, self.frequency = weight, L1(), Frequency()

    def forward(self, output, target):
        return self.l1(output, target) + self.weight * self.frequency(output, target)


class PSNR(nn.Module):
    """Minus the mean peak signal-to-noise ratio of the samples in decibels, as HINet (arXiv 2105.06086) trains on.

    A sample's gradient goes with the inverse of its error, so that a mixture's hard tasks (haze) don't drown its easy ones
    (faint noise), and a shift of brightness counts as it does in the score. ``floor``, a mean squared error, bounds what an
    all but perfect sample can weigh.
    """

    def __init__(self, floor=1e-5):
        super().__init__()
        if floor <= 0:
            raise RestoreError(f"floor: {floor} must be positive")
        self.floor = floor

    def forward(self, output, target):
        error = (output.float() - target.float()).square().flatten(1).mean(1)
        return 10 * torch.log10(error + self.floor).mean()


class SSIM(nn.Module):
    """One minus structural similarity (Wang et al. 2004): Gaussian window of 11x11 pixels and sigma 1.5, whole windows alone.

    The ``"gaussian11"`` of :func:`restore.metrics.ssim`, with a gradient; for a data range of 1 and sides of 11 pixels or more.
    """

    def __init__(self):
        super().__init__()
        self.register_buffer("kernel", torch.from_numpy(gaussian_kernel()).float(), persistent=False)

    def forward(self, output, target):
        if min(output.shape[-2:]) < len(self.kernel):
            raise RestoreError(f"SSIM needs images of at least {len(self.kernel)} pixels a side, not "
                               f"{tuple(output.shape[-2:])}")
        x, y = (image.float().flatten(0, 1)[:, None] for image in (output, target))
        mean_x, mean_y, xx, yy, xy = self._blur(torch.cat([x, y, x * x, y * y, x * y])).chunk(5)
        means, squares = mean_x * mean_y, mean_x * mean_x + mean_y * mean_y
        similarity = (2 * means + C1) * (2 * (xy - means) + C2) / ((squares + C1) * (xx + yy - squares + C2))
        return 1 - similarity.mean()

    def _blur(self, planes):
        with torch.autocast(planes.device.type, enabled=False):
            return F.conv2d(F.conv2d(planes, self.kernel[None, None, :, None]), self.kernel[None, None, None])


LOSSES = {"l1": L1, "charbonnier": Charbonnier, "frequency": FrequencyL1, "psnr": PSNR}


def build_loss(name, frequency_weight=0.1):
    """The loss of that name, ``frequency_weight`` being for ``"frequency"`` alone; raises RestoreError for an unknown one."""
    if name not in LOSSES:
        raise RestoreError(f"loss: {name!r} is none of {', '.join(LOSSES)}")
    return FrequencyL1(frequency_weight) if name == "frequency" else LOSSES[name]()


class Criterion(nn.Module):
    """What a training step minimises; here a ``loss`` of output and target alone. A subclass may bring a teacher.

    It is moved to the run's device, and nothing in it is trained or saved: what it holds must not change during a run.
    """

    def __init__(self, loss):
        super().__init__()
        self.loss = loss

    def prepare(self, batch):
        """The micro-batch before its first pass, with more entries if need be: tensors of one row a sample."""
        return batch

    def forward(self, output, target, rows):
        """``(loss, parts)`` of one pass: a scalar, and more scalars by name for the log.

        rows: the entries of the prepared batch for the rows of this pass. target: the clean images, or for a depth that
        learns from the largest, that one's output.
        """
        return self.loss(output, target), {}
