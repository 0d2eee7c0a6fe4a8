"""Haze by the atmospheric scattering model ``I = J t + A (1 - t)``, ``t = exp(-beta d)`` (Narasimhan & Nayar 2002).

``d`` comes from a depth map, or from :func:`pseudo_depth`: a made-up depth with what matters of a real one for a
network that shall learn to remove haze: large smooth surfaces, steps that mostly coincide with edges of the image,
and often more distance towards the top.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F

from .common import draw, draw_index, draw_log, per_image, smooth_field


@dataclass(frozen=True)
class Hazes:
    """Ranges of one kind of haze; :func:`sample_haze` draws the strength of one image from them."""

    weight: float = 1.0
    beta: tuple = (0.35, 2.2)           # optical thickness at the farthest point: t there is exp(-beta)
    nearest: tuple = (0.05, 0.6)        # depth of the nearest point as a share of the farthest
    airlight: tuple = (0.7, 1.0)        # the grey of the haze
    white: float = 0.5                  # how often the airlight is white instead, exactly 1 as in the SOTS indoor set
    tint: float = 0.05                  # how far red and blue differ from grey, about: haze is bluish or yellowish
    slope: tuple = (-0.3, 1.0)          # how much of the depth is "farther towards the top" (negative: the bottom)
    objects: tuple = (0.2, 1.0)         # weight of steps between regions of similar colour and place
    relief: tuple = (0.1, 0.6)          # weight of the smooth random field
    uneven: tuple = (0.0, 0.0)          # relative variation of the haze's own thickness (patchy fog)


# INDOOR follows the training pairs of SOTS indoor (Li et al. 2019) in transmission and PSNR; OUTDOOR has a horizon,
# a far sky and coloured air.
INDOOR = Hazes()
OUTDOOR = Hazes(beta=(0.3, 3.0), nearest=(0.0, 0.4), airlight=(0.6, 1.0), white=0.1, tint=0.08, slope=(0.5, 2.0),
                objects=(0.0, 0.6), relief=(0.0, 0.4), uneven=(0.0, 0.4))
KINDS = (INDOOR, OUTDOOR)


@per_image
def haze(image, generator=None, *, depth=None, beta=1.0, airlight=0.9):
    """``image`` seen through haze.

    Args:
        depth: (h,w) distances, 0 at the camera, in any unit; None for :func:`pseudo_depth` (in [0,1]).
        beta: scattering coefficient per unit of ``depth``.
        airlight: colour of the haze in [0,1], a number or three.
    """
    if depth is None:
        depth = pseudo_depth(image, generator)
    if depth.shape != image.shape[-2:]:
        raise ValueError(f"depth is {tuple(depth.shape)}, the image is {tuple(image.shape[-2:])}")
    return scatter(image, torch.exp(-beta * depth.clamp(min=0)), airlight)


def scatter(image, transmission, airlight):
    """``J t + A (1 - t)`` with ``transmission`` (h,w) in [0,1] and ``airlight`` a number or three."""
    airlight = torch.as_tensor(airlight, dtype=image.dtype, device=image.device).expand(3)[:, None, None]
    return torch.lerp(airlight, image, transmission.to(image.dtype)).clamp_(0, 1)


@per_image
def random_haze(image, generator, *, kinds=KINDS, depth=None, **given):
    """``image`` in haze of a kind drawn from ``kinds`` (:class:`Hazes`), each image of a batch with its own depth.

    A measured ``depth`` (see :func:`sample_haze`), and ``beta`` or ``airlight`` in ``given``, replace what is drawn.
    """
    kind = kinds[draw_index(generator, [kind.weight for kind in kinds])]
    return haze(image, generator, **{**sample_haze(image, generator, kind, depth), **given})


def sample_haze(image, generator, ranges, depth=None):
    """Arguments for :func:`haze` on ``image`` (3,h,w), drawn from a :class:`Hazes`.

    ``depth`` (h,w), if there is a measured one, has 0 at the camera and 1 at the farthest point; otherwise a
    pseudo-depth of this image is drawn too.
    """
    if depth is None:
        depth = pseudo_depth(image, generator, slope=draw(generator, *ranges.slope),
                             objects=draw(generator, *ranges.objects), relief=draw(generator, *ranges.relief))
        nearest = draw(generator, *ranges.nearest)
        depth = depth * (1 - nearest) + nearest
    uneven = draw(generator, *ranges.uneven)
    if uneven > 0:
        depth = depth * smooth_field(*depth.shape, generator, cells=4).mul_(2 * uneven).add_(1 - uneven)
    if draw(generator, 0, 1) < ranges.white:
        airlight = (1.0, 1.0, 1.0)
    else:
        grey, tint = draw(generator, *ranges.airlight), draw(generator, -ranges.tint, ranges.tint)
        airlight = tuple(min(1.0, value + draw(generator, -0.3, 0.3) * ranges.tint)
                         for value in (grey - tint, grey, grey + tint))
    return {"depth": depth, "beta": draw_log(generator, *ranges.beta), "airlight": airlight}


def pseudo_depth(image, generator, *, slope=0.5, objects=0.6, relief=0.3, regions=12):
    """A plausible depth (h,w) in [0,1] for ``image`` (3,h,w): 0 the nearest, 1 the farthest point.

    The sum of a plane, of one constant for each of ``regions`` regions of similar colour and place, and of a smooth
    random field, with the weights ``slope``, ``objects`` and ``relief``; made at a quarter of the size (less for large
    images) and brought to the edges of the image by a guided filter (He et al. 2013).
    """
    height, width = image.shape[-2:]
    scale = max(4, max(height, width) // 64)
    rows, columns = (max(1, round(n / scale)) for n in (height, width))
    small = F.interpolate(image[None], (rows, columns), mode="area")[0]
    device = image.device
    down = torch.linspace(0, 1, rows, device=device)[:, None].expand(rows, columns)
    across = torch.linspace(0, 1, columns, device=device)[None].expand(rows, columns)

    # every pixel joins the nearest of a few random pixels, near in place and colour: regions that follow edges
    features = torch.cat([torch.stack([down, across]) * draw(generator, 0.5, 2.5), small * draw(generator, 1, 3)])
    seeds = torch.randint(rows * columns, (regions,), generator=generator, device=device)
    centres = features.flatten(1)[:, seeds]
    distance = torch.zeros(regions, rows, columns, device=device)
    for plane, centre in zip(features, centres):           # a loop, so that the order of the sum is fixed
        distance += (plane[None] - centre[:, None, None]).square_()
    # a region is as far as its seed's place lets expect, give or take
    level = torch.rand(regions, generator=generator, device=device)
    depth = level[distance.argmin(0)].mul_(objects)
    depth -= slope * down + draw(generator, -0.5, 0.5) * abs(slope) * across
    depth += relief * smooth_field(rows, columns, generator, cells=3)
    depth = _guided_upsample(depth, small, image, epsilon=draw_log(generator, 5e-4, 1e-2))
    low, high = depth.min(), depth.max()
    return (depth - low) / (high - low).clamp(min=1e-6)


def _guided_upsample(coarse, small, image, epsilon, radius=2):
    """The fast guided filter (He & Sun 2015): ``coarse`` (h',w') at the size of ``image``, its edges where those are.

    A small ``epsilon`` lets fainter edges of the image into the depth, and more of its texture.
    """
    guide, full = ((0.299 * x[0] + 0.587 * x[1] + 0.114 * x[2])[None, None] for x in (small, image))
    coarse = coarse[None, None]

    def mean(x):
        return F.avg_pool2d(F.pad(x, (radius,) * 4, mode="replicate"), 2 * radius + 1, stride=1)

    mean_guide, mean_coarse = mean(guide), mean(coarse)
    variance = mean(guide * guide) - mean_guide * mean_guide
    gain = (mean(guide * coarse) - mean_guide * mean_coarse) / (variance.clamp(min=0) + epsilon)
    offset = mean_coarse - gain * mean_guide
    gain, offset = (F.interpolate(mean(x), full.shape[-2:], mode="bilinear") for x in (gain, offset))
    return (gain * full + offset)[0, 0]
