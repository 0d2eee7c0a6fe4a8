"""Additive noise: Gaussian, Poisson-Gaussian and uniform. All strengths are on the 0..255 scale."""

import torch

from .common import per_image


@per_image
def gaussian(image, generator, *, sigma=25.0, truncate=False):
    """White Gaussian noise of standard deviation ``sigma`` (0..255 scale), clipped to [0,1].

    ``truncate=True`` is the exact rule of the all-in-one benchmarks (PromptIR and its descendants): the image is taken
    as the 8-bit image that it was read from, the noise is added on the 0..255 scale, the sum is clipped to 0..255
    and its fraction is cut off as by numpy's ``astype(uint8)``. That darkens the image by half a level; a network
    trained without it loses 0.01 to 0.04 dB on those benchmarks.
    """
    noise = torch.randn(image.shape, generator=generator, device=image.device)
    return _add(image, noise.mul_(sigma), truncate)


@per_image
def uniform(image, generator, *, amplitude=50.0, truncate=False):
    """Random noise, uniform in [-amplitude, amplitude] (0..255 scale); ``truncate`` as in :func:`gaussian`."""
    noise = torch.rand(image.shape, generator=generator, device=image.device)
    return _add(image, noise.mul_(2).sub_(1).mul_(amplitude), truncate)


@per_image
def poisson_gaussian(image, generator, *, photons=200.0, sigma=5.0, truncate=False):
    """Sensor noise: photon counting and Gaussian read noise (Foi et al., IEEE TIP 2008).

    A white pixel counts ``photons`` photons on average, a pixel x counts ``x * photons``; their Poisson noise has the
    variance ``x / photons``. Read noise of standard deviation ``sigma`` (0..255 scale) is added. ``truncate`` as in
    :func:`gaussian`.
    """
    if photons <= 0:
        raise ValueError(f"photons must be positive, not {photons}")
    counts = torch.poisson(image.clamp(min=0) * photons, generator=generator)
    noise = torch.randn(image.shape, generator=generator, device=image.device).mul_(sigma)
    shot = counts.div_(photons).sub_(image)
    return _add(image, noise.add_(shot, alpha=255), truncate)


def _add(image, noise, truncate):
    """``image`` plus ``noise`` (0..255 scale; overwritten)."""
    if not truncate:
        return noise.div_(255).add_(image).clamp_(0, 1)
    levels = torch.round(image * 255)          # 8-bit levels again: 200 / 255 * 255 may come out as 199.99998
    return noise.add_(levels).clamp_(0, 255).floor_().div_(255)
