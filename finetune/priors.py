"""What is known of a clear photo without a network: one step from an image towards clear, for haze and for rain.

Both steps take a restored image (3, h, w) in [0, 1] and return one of the same size in which a rest of the degradation,
as far as the prior sees any, is removed; of a clear image they change next to nothing. In an adaptation they are
applied to what the teacher restores, and the student learns the result.

Haze: the dark channel (He, Sun, Tang, CVPR 2009): in a clear photo nearly every small window has some value near zero;
what it has instead is the share of airlight, and the scattering model is inverted with it, which raises the contrast as
it takes the veil away. Colour constancy: the airlight's tint is halved, so that a wrong one does not colour the scene,
and what is grey stays grey.

Rain: a streak is brighter than what lies to both sides of it, thin, and keeps its direction for many pixels, which is
the same for most streaks of a photo.
"""

import math

import torch
import torch.nn.functional as F

CLEAR = 0.17                 # dark channel of a clear photo: the median of 41 of BSDS500's, reduced to 288 pixels
THICKEST = 0.4               # no less light of the scene than this is assumed: noise would be raised too far
GREY = 0.05                  # distance of the three channels from their brightness that counts as grey
TINT = 0.5                   # of the airlight's own is kept
_LUMA = (0.299, 0.587, 0.114)


def luma(image):
    """(h, w) of (3, h, w), BT.601."""
    return sum(weight * plane for weight, plane in zip(_LUMA, image))


def dark_channel(image, radius):
    """The least value of all channels within ``radius`` pixels, (h, w) of (3, h, w)."""
    return -_pool_max(-image.amin(0), radius, radius)


def window(height, width):
    """The dark channel's radius in pixels for an image of this size."""
    return max(2, round(max(height, width) / 50))


def airlight(image):
    """The colour of the haze, (3,): the mean of the fiftieth of the image with the brightest dark channel, its tint halved."""
    dark = dark_channel(image, window(*image.shape[1:])).flatten()
    brightest = dark.topk(max(1, len(dark) // 50)).indices
    colour = image.flatten(1)[:, brightest].mean(1)
    grey = colour.mean()
    return (grey + TINT * (colour - grey)).clamp(min=0.3)


def veil(image, air, radius=None):
    """The share of airlight (h, w) in [0, 1] that the dark channel of ``image`` shows beyond that of clear photos."""
    dark = dark_channel(image / air[:, None, None], radius or window(*image.shape[1:]))
    return ((dark - CLEAR) / (1 - CLEAR)).clamp(0, 1)


def veil_of(photo):
    """The mean :func:`veil` of a whole photo in its own airlight."""
    return float(veil(photo, airlight(photo)).mean())


def less_haze(image, air, radius=None, share=0.8):
    """``image`` with ``share`` of the :func:`veil` taken away.

    air: (3,), the :func:`airlight` of the whole photo. radius: :func:`window` of the whole photo, if this is a crop of it.
    """
    radius = radius or window(*image.shape[1:])
    light = (1 - guided(share * veil(image, air, radius), luma(image), 3 * radius)).clamp(THICKEST, 1)
    air = air[:, None, None]
    return keep_grey(image, ((image - air) / light + air).clamp(0, 1))


def keep_grey(before, after):
    """Colour constancy: ``after`` with the colour of ``before`` where that is grey; the brightness is that of ``after``."""
    own, wanted = before - luma(before), after - luma(after)
    grey = torch.exp(-(own.square().sum(0) / GREY ** 2))
    return (after + grey * (own - wanted)).clamp(0, 1)


def guided(plane, guide, radius, epsilon=1e-3):
    """The guided filter (He et al. 2013): ``plane`` (h, w) smoothed, with the edges of ``guide`` (h, w)."""
    def mean(x):
        return _mean(x, radius)

    mean_guide, mean_plane = mean(guide), mean(plane)
    variance = mean(guide * guide) - mean_guide ** 2
    gain = (mean(guide * plane) - mean_guide * mean_plane) / (variance.clamp(min=0) + epsilon)
    return mean(gain) * guide + mean(mean_plane - gain * mean_guide)


ANGLES = tuple(range(-45, 46, 5))            # degrees from the vertical, positive leans "/", as in restore.degradations.rain
REACH = 4                                    # pixels to either side: wider than a streak, narrower than most things
LENGTH = 21                                  # pixels along a streak
FAINTEST, BRIGHTEST = 0.01, 0.3              # of what a streak adds; a lamp post adds more


def streaks(image, angle=None):
    """``(streaks (h, w), angle)``: what thin bright lines of the photo's main direction add to its brightness.

    angle: that direction in degrees; None to find it. Nothing is found where no direction stands out.
    """
    bright = luma(image)
    excess = bright - torch.maximum(*_sides(bright))
    excess = (excess - FAINTEST).clamp(0, BRIGHTEST)
    if angle is None:
        found = [line_mean(excess, a).pow(2).mean().item() for a in ANGLES]
        angle = ANGLES[max(range(len(ANGLES)), key=found.__getitem__)]
    along = line_mean(excess, angle)
    across = torch.maximum(line_mean(excess, angle - 45), line_mean(excess, angle + 45))
    line = ((along - 1.2 * across) / along.clamp(min=1e-4)).clamp(0, 1)      # 0 where it is as bright in another direction
    return excess.minimum(2 * along) * line, angle


def less_rain(image, angle=None):
    """``image`` with its :func:`streaks` taken out of all channels alike, which keeps the colours."""
    rain, _ = streaks(image, angle)
    return (image - rain).clamp(0, 1)


def line_mean(plane, angle, length=LENGTH):
    """The mean of ``plane`` (h, w) over lines of ``length`` pixels through every place, ``angle`` degrees from the vertical."""
    half = length // 2
    kernel = torch.zeros(2 * half + 1, 2 * half + 1)
    for step in range(-2 * half, 2 * half + 1):
        row, column = half + step / 2 * math.cos(math.radians(angle)), half - step / 2 * math.sin(math.radians(angle))
        kernel[round(row), round(column)] = 1
    kernel = (kernel / kernel.sum()).to(plane)
    return F.conv2d(F.pad(plane[None, None], (half,) * 4, mode="replicate"), kernel[None, None])[0, 0]


def _sides(plane):
    """What lies to the left and to the right of every place: medians of the pixels from two to ``REACH`` away, two (h, w)."""
    padded = F.pad(plane[None], (REACH, REACH), mode="replicate")[0]
    width = plane.shape[1]
    left = [padded[:, REACH - d:REACH - d + width] for d in range(2, REACH + 1)]
    right = [padded[:, REACH + d:REACH + d + width] for d in range(2, REACH + 1)]
    return torch.stack(left).median(0).values, torch.stack(right).median(0).values


def _pool_max(plane, rows, columns):
    padded = F.pad(plane[None], (columns, columns, rows, rows), mode="replicate")
    return F.max_pool2d(padded, (2 * rows + 1, 2 * columns + 1), stride=1)[0]


def _mean(plane, radius):
    padded = F.pad(plane[None, None], (radius,) * 4, mode="replicate")
    padded = F.avg_pool2d(padded, (1, 2 * radius + 1), stride=1)
    return F.avg_pool2d(padded, (2 * radius + 1, 1), stride=1)[0, 0]
