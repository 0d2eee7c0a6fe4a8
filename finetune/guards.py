"""What an adaptation may not do: figures of held-out photos, of clear photos and of pairs, and the bounds that they must keep.

Every figure is taken before (the network as it came) and after, on the same images.
"""

import dataclasses
import math

import cv2
import numpy as np

from restore.benchmark.noreference import MEASURES, entropy, gray
from restore.metrics import psnr
from restore.recipe import require_within
from restore.restorer import Restorer

from . import priors
from .photos import as_array

NEUTRAL = 6.0                # chroma in CIELAB below which a place of the unadapted output counts as neutral


@dataclasses.dataclass
class Guards:
    """Bounds; an adaptation that breaks one is not kept.

    paired_loss: dB of PSNR that the pairs may lose. clear_psnr: dB that clear photos, restored, keep to themselves;
    where the network as it came has less, it may lose ``clear_loss`` dB of that. neutral_shift: mean colour shift of
    neutral areas against the unadapted output, in delta E (CIELAB, without lightness). brightness: mean change of
    lightness, in units of L*.
    clipped: share of pixels that become black or white in some channel. sharpness: least ratio to the unadapted output,
    of the mean squared gradient (for rain: of the gradient from top to bottom, in which streaks hardly show). entropy:
    bits that may be lost.
    improvement: share by which what the prior still sees of the degradation must fall.
    """
    paired_loss: float = 0.1
    clear_psnr: float = 32.0
    clear_loss: float = 0.5
    neutral_shift: float = 3.0
    brightness: float = 10.0
    clipped: float = 0.02
    sharpness: float = 1.0
    entropy: float = 0.0
    improvement: float = 0.05

    def check(self):
        require_within(self, 0, math.inf, *vars(self))

    def broken(self, after, before):
        """The bounds that the means ``after`` break, each in words; ``before`` are those of the unadapted network."""
        kept = min(self.clear_psnr, before["clear_psnr"] - self.clear_loss)
        lost = before["paired_psnr"] - after["paired_psnr"]
        rules = [
            (lost > self.paired_loss, f"the pairs lose {lost:.2f} dB, more than {self.paired_loss:g}"),
            (after["clear_psnr"] < kept, f"clear photos keep {after['clear_psnr']:.1f} dB, less than {kept:.1f}"),
            (after["neutral_shift"] > self.neutral_shift, f"neutral areas shift by {after['neutral_shift']:.1f} delta E, "
                                                          f"more than {self.neutral_shift:g}"),
            (abs(after["brightness"]) > self.brightness, f"lightness changes by {after['brightness']:+.1f}, "
                                                         f"more than {self.brightness:g}"),
            (after["clipped"] > self.clipped, f"{after['clipped']:.1%} of the pixels become black or white, "
                                              f"more than {self.clipped:.1%}"),
            (after["sharpness"] < self.sharpness * before["sharpness"], f"sharpness falls to {after['sharpness']:.0f} from "
                                                                        f"{before['sharpness']:.0f}"),
            (after["entropy"] < before["entropy"] - self.entropy, f"entropy falls to {after['entropy']:.2f} from "
                                                                  f"{before['entropy']:.2f}"),
        ]
        return [text for wrong, text in rules if wrong]


class Judge:
    """The figures of held-out photos, clear ones and pairs, before and after, at any depth."""

    def __init__(self, recipe, model, held, clear, pairs):
        self.recipe, self.held, self.pairs = recipe, held, pairs
        self.clear = [photo.pixels for photo in clear[:recipe.images]]
        self.restorer = Restorer(model, device=recipe.device)
        self.angles = [None if recipe.task == "haze" else priors.streaks(photo.pixels)[1] for photo in held]
        self.first, self.known = {}, {}

    def before(self, depth=None):
        """The figures of the network as it came."""
        if depth not in self.known:
            restorer = self.restorer.at(depth)
            self.first[depth] = [restorer.restore(photo.pixels) for photo in self.held]
            self.known[depth] = self._measure(restorer, self.first[depth], depth)[0]
        return self.known[depth]

    def everywhere(self, adapter, depths):
        """``({depth: (figures, outputs)}, bounds that are broken, in words)`` with an adapter; ends at the first depth that
        breaks one. ``depths`` begin with None, the default."""
        tried, broken = {}, []
        for depth in depths:
            before = self.before(depth)
            restorer = self.restorer.adapted(adapter).at(depth)
            tried[depth] = self._measure(restorer, [restorer.restore(photo.pixels) for photo in self.held], depth)
            broken = [f"{f'at depth {depth}: ' if depth else ''}{text}"
                      for text in self.recipe.guards.broken(tried[depth][0], before)]
            if broken:
                break
        return tried, broken

    def _measure(self, restorer, outputs, depth):
        rows = [photo_figures(self.recipe.task, photo.pixels, first, output, angle)
                for photo, first, output, angle in zip(self.held, self.first[depth], outputs, self.angles)]
        found = mean_figures(rows)
        found["clear_psnr"] = pair_psnr(restorer.restore, [(image, image) for image in self.clear])
        found["paired_psnr"] = pair_psnr(restorer.restore, self.pairs)
        return found, outputs


def residue(task, photo, output, angle=None):
    """What the prior still sees of the degradation: the mean veil, or what streaks add, in thousandths."""
    if task == "haze":
        return 1000 * float(priors.veil(output, priors.airlight(photo)).mean())
    return 1000 * float(priors.streaks(output, angle)[0].mean())


def photo_figures(task, photo, unadapted, output, angle=None):
    """The figures of one photo restored; the three images are (3, h, w) in [0, 1], ``angle`` is that of its streaks."""
    first, image = as_array(unadapted), as_array(output)
    own = "fade" if task == "haze" else "piqe"
    return {"residue": residue(task, photo, output, angle), own: float(MEASURES[own](image)), "entropy": entropy(image),
            "sharpness": sharpness(task, image), "neutral_shift": neutral_shift(first, image),
            "brightness": float((_lab(image) - _lab(first))[..., 0].mean()), "clipped": _clipped(image) - _clipped(first)}


def sharpness(task, image):
    """Mean squared Sobel gradient of gray levels; for rain of the vertical one alone. ``image``: uint8 (h, w, 3)."""
    levels = gray(image)
    down = (cv2.Sobel(levels, cv2.CV_64F, 0, 1) ** 2).mean()
    return float(down if task == "rain" else down + (cv2.Sobel(levels, cv2.CV_64F, 1, 0) ** 2).mean())


def neutral_shift(first, image):
    """Mean distance in CIELAB's a*b* plane between two uint8 images (h, w, 3), where ``first`` is neutral."""
    before, after = _lab(first)[..., 1:], _lab(image)[..., 1:]
    neutral = np.hypot(*np.moveaxis(before, -1, 0)) < NEUTRAL
    return float(np.hypot(*np.moveaxis(after - before, -1, 0))[neutral].mean()) if neutral.any() else 0.0


def mean_figures(rows):
    """The mean of each figure over photos."""
    return {key: float(np.mean([row[key] for row in rows])) for key in rows[0]} if rows else {}


def pair_psnr(restore, pairs):
    """Mean PSNR in dB, at most 100, of ``restore(input)`` on (input, target) pairs, RGB, not rounded."""
    return float(np.mean([psnr(restore(degraded), clean, limit=100) for degraded, clean in pairs]))


def _lab(image):
    return cv2.cvtColor(image.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def _clipped(image):
    return float(((image == 0) | (image == 255)).any(-1).mean())
