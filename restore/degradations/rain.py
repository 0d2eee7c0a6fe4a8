"""Rain: layers of streaks, and the veil of mist that many distant drops make.

A streak is drawn as a box with ramps at its ends, in a picture that is sheared so that streaks stand upright; shearing
it back gives them their direction. All streaks of a layer are placed by adding a few numbers to a difference array and
summed up by cumulative sums, in integers: the cost does not depend on their length, the bits on no order of addition.
"""

import math
from dataclasses import dataclass

import torch

from .common import draw, draw_index, draw_log, per_image, smooth_field

_UNIT = 2 ** 30            # brightness 1 in the integers of a layer
_PARTS = 64                # a streak's edges lie on this fraction of a pixel


@dataclass(frozen=True)
class Streaks:
    """One layer of rain. Lengths and widths in pixels, pairs are ranges that every streak draws its own value from."""

    angle: float = 10.0                 # degrees from the vertical, positive leans "/" (falls to the left)
    length: tuple = (20.0, 50.0)
    width: tuple = (1.0, 2.0)
    density: float = 0.1                # share of the image that the streaks would cover if they never overlapped
    brightness: tuple = (0.05, 0.4)     # what a streak adds; faint ones are the more frequent
    taper: tuple = (0.3, 0.5)           # share of the length over which the upper and the lower end fade out
    blur: float = 0.4                   # sigma in pixels, across the streaks
    ceiling: float = 1.0                # overlapping streaks of a layer add up to no more than this


@dataclass(frozen=True)
class Rainfall:
    """Ranges of one kind of rain; :func:`sample_rain` draws the strength of one image from them."""

    weight: float = 1.0                 # how often, among several kinds
    layers: tuple = (1, 3)              # number of layers, both ends included
    angle: float = 30.0                 # the main direction is in [-angle, angle] degrees
    spread: float = 5.0                 # further layers differ from it by up to so many degrees, mostly by far fewer
    length: tuple = (15.0, 140.0)       # of the mean streak of a layer
    width: tuple = (0.8, 2.0)
    density: tuple = (0.08, 0.6)        # of all layers together
    brightness: tuple = (0.18, 0.8)     # of the brightest streaks
    faintest: tuple = (0.0, 0.3)        # the faintest streaks, as a share of the brightest
    taper: tuple = (0.1, 0.5)
    blur: tuple = (0.2, 0.7)
    veil: tuple = (0.0, 0.0)            # opacity of the mist
    screen: float = 0.0                 # how often streaks cover what is behind them, instead of being added


# The kinds that training mixes. LIGHT and HEAVY follow the training pairs of Rain100L and Rain100H (Yang et al. 2017)
# in sign, amplitude, coverage and PSNR of rainy - clean; NATURAL is our reading of photos of real rain.
LIGHT = Rainfall()
HEAVY = Rainfall(layers=(2, 4), angle=20.0, spread=40.0, length=(20.0, 140.0), width=(0.8, 2.5), density=(0.7, 2.5),
                 brightness=(0.2, 0.6), faintest=(0.4, 0.9), taper=(0.02, 0.15), blur=(0.0, 0.5))
NATURAL = Rainfall(layers=(2, 4), angle=35.0, spread=6.0, length=(10.0, 60.0), width=(0.8, 2.0), density=(0.4, 3.0),
                   brightness=(0.12, 0.5), faintest=(0.0, 0.5), blur=(0.3, 0.8), veil=(0.0, 0.2), screen=0.8)
KINDS = (LIGHT, HEAVY, NATURAL)


@per_image
def rain(image, generator, *, layers=(Streaks(),), veil=0.0, colour=1.0, screen=False):
    """``image`` behind rain, clipped to [0,1].

    Args:
        layers: :class:`Streaks`, one for each layer; their brightnesses add up.
        veil: opacity in [0,1] of the mist, which is ``colour`` and unevenly thick (0 to 2 times ``veil``).
        colour: of drops and mist, a number or three.
        screen: False adds the streaks (``I + colour R``, as the benchmarks do); True lets them cover what is behind
            (``I (1-R) + colour R``), which leaves bright places such as the sky unchanged.
    """
    height, width = image.shape[-2:]
    colour = torch.as_tensor(colour, dtype=image.dtype, device=image.device).expand(3)[:, None, None]
    streaks = torch.zeros(height, width, device=image.device)
    for layer in layers:
        streaks += streak_layer(height, width, generator, layer)
    if screen:
        streaks = streaks.clamp_(max=1)
        rainy = torch.lerp(image, colour.expand_as(image), streaks)
    else:
        rainy = image + streaks * colour
    if veil > 0:
        mist = smooth_field(height, width, generator, cells=3).mul_(2 * veil).clamp_(max=1)
        rainy = torch.lerp(rainy, colour.expand_as(image), mist)
    return rainy.clamp_(0, 1)


def streak_layer(height, width, generator, streaks):
    """The brightness (h,w), in [0, ceiling], that one layer of :class:`Streaks` adds."""
    angle = (streaks.angle + 90) % 180 - 90
    if abs(angle) > 45:                        # the shear would be steep: draw the mirror image along the diagonal
        turned = streak_layer(width, height, generator, _with_angle(streaks, math.copysign(90, angle) - angle))
        return turned.T.contiguous()
    slope = math.tan(math.radians(angle))      # columns to the left for each row down
    upright = math.cos(math.radians(angle))
    # an upright canvas that the image, sheared, fits into; above and left is room for streaks that begin outside
    shift = slope * torch.arange(height, device=generator.device, dtype=torch.float32)[:, None]
    room = math.ceil(max(streaks.width) / upright) + 1
    above = math.ceil(max(streaks.length) * upright) + 2
    leftmost = room + math.ceil(max(0.0, -slope * (height - 1)))
    columns = leftmost + width + math.ceil(max(0.0, slope * (height - 1))) + 2
    canvas = _upright(above + height, columns, generator, streaks, upright)[above:]
    canvas = _blur_rows(canvas.clamp_(max=streaks.ceiling), streaks.blur)
    position = torch.arange(width, device=generator.device) + shift + leftmost
    left = position.floor()
    index = left.long()
    return torch.lerp(canvas.gather(1, index), canvas.gather(1, index + 1), position.sub_(left))


@per_image
def random_rain(image, generator, *, kinds=KINDS):
    """``image`` with rain of a kind drawn from ``kinds`` (:class:`Rainfall`), each image of a batch with its own."""
    kind = kinds[draw_index(generator, [kind.weight for kind in kinds])]
    return rain(image, generator, **sample_rain(generator, kind))


def sample_rain(generator, ranges):
    """Arguments for :func:`rain` drawn from a :class:`Rainfall`."""
    count = math.floor(draw(generator, ranges.layers[0], ranges.layers[1] + 1))
    angle = draw(generator, -ranges.angle, ranges.angle)
    density = draw_log(generator, *ranges.density) / count
    brightest = draw_log(generator, *ranges.brightness)
    layers = []
    for number in range(count):
        length = draw_log(generator, *ranges.length)
        width = draw(generator, *ranges.width)
        bright = brightest * (draw(generator, 0.5, 1) if number else 1)
        layers.append(Streaks(
            angle=angle + (ranges.spread * draw(generator, -1, 1) ** 3 if number else 0),
            length=(0.4 * length, 1.6 * length), width=(0.6 * width, 1.4 * width), density=density,
            brightness=(bright * draw(generator, *ranges.faintest), bright),
            taper=(draw(generator, *ranges.taper), draw(generator, *ranges.taper)),
            blur=draw(generator, *ranges.blur), ceiling=bright * draw(generator, 1.0, 1.5)))
    veil = draw(generator, *ranges.veil)
    screen = draw(generator, 0, 1) < ranges.screen
    grey, tint = draw(generator, 0.75, 1), draw(generator, -0.04, 0.04)
    colour = (grey - tint, grey, grey + tint) if screen or veil else 1.0
    return {"layers": tuple(layers), "veil": veil, "colour": colour, "screen": screen}


def _upright(rows, columns, generator, streaks, upright):
    """The layer (rows, columns) with all streaks vertical: ``upright`` is the cosine of their true angle."""
    mean_area = sum(streaks.length) / 2 * sum(streaks.width) / 2
    count = math.floor(streaks.density * rows * columns / mean_area + draw(generator, 0, 1))
    device = generator.device
    chance = torch.rand(6, count, generator=generator, device=device, dtype=torch.float64)

    def between(chances, bounds):
        return chances * (bounds[1] - bounds[0]) + bounds[0]

    length = (between(chance[0], streaks.length) * upright).long().clamp_(min=2)
    head = (length * streaks.taper[0]).long().clamp_(min=1)
    tail = (length * streaks.taper[1]).long().clamp_(min=1)
    top = (chance[1] * rows).long()
    left = chance[2] * (columns + 8) - 8
    right = left + between(chance[3], streaks.width) / upright
    brightness = between(chance[4] * chance[5], streaks.brightness)      # a product: faint ones are the more frequent
    unit = (brightness * (_UNIT / _PARTS) / (head * tail)).round().long()

    # twice summed down the rows these four give the ramp up, the plateau and the ramp down
    body = (length - head - tail).clamp_(min=0)
    row = torch.stack([top, top + head, top + head + body, top + head + body + tail])
    down = torch.stack([tail, -tail, -head, head]) * unit
    # once summed along the columns: a box whose edges share their pixel with what is beside it
    column, along = [], []
    for edge, sign in ((left, 1), (right, -1)):
        pixel = edge.floor()
        part = ((edge - pixel) * _PARTS).long()
        column += [pixel.long(), pixel.long() + 1]
        along += [sign * (_PARTS - part), sign * part]
    column, along = torch.stack(column), torch.stack(along)

    value = down[:, None] * along[None]
    inside = (row < rows)[:, None] & (column < columns)[None]
    place = row[:, None] * columns + column.clamp(min=0)[None]     # what begins left of the canvas begins at its edge
    canvas = torch.zeros(rows * columns, dtype=torch.int64, device=device)
    canvas.index_add_(0, place[inside], value[inside])
    canvas = canvas.view(rows, columns).cumsum(0).cumsum(0).cumsum(1)
    return canvas.to(torch.float64).div_(_UNIT).float()


def _blur_rows(layer, sigma):
    """Gaussian blur along the rows, borders repeated."""
    if sigma < 0.05:
        return layer
    reach = math.ceil(2 * sigma)
    weights = [math.exp(-0.5 * (offset / sigma) ** 2) for offset in range(-reach, reach + 1)]
    width = layer.shape[1]
    padded = torch.nn.functional.pad(layer[None], (reach, reach), mode="replicate")[0]
    blurred = padded[:, :width] * (weights[0] / sum(weights))
    for offset, weight in enumerate(weights[1:], 1):
        blurred.add_(padded[:, offset:offset + width], alpha=weight / sum(weights))
    return blurred


def _with_angle(streaks, angle):
    return Streaks(**{**streaks.__dict__, "angle": angle})
