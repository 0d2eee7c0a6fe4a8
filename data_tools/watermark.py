"""Watermarks, found per source: what the gradients of many images of one place have in common.

A mark on a single image cannot be told from its content without learned weights. Across the images of one source the
content averages out and the mark stays (Dekel, Rubinstein, Liu and Freeman, "On the effectiveness of visible watermarks",
CVPR 2017, take the median gradient). Here the gradients are bounded first and then averaged, which is as robust as a
median and also sees a mark that only a part of the images carries; the images that fit the pattern best then make it
anew. Every image is scored with a pattern made without it (the sample is cut in two), by how far the correlation at the
right place stands above those at all other shifts.

A source needs some sixteen marked images. What is alike for another reason, such as a fixed camera's frame, is found
as well.
"""

import cv2
import numpy as np

SIDE = 192                                 # of the windows that are compared
PLACES = ("whole", "centre", "lower left", "lower right")
_REACH = 3                                 # pixels by which a mark may be off its place
FOUND = 8.0                                # standard deviations above the correlations at other shifts


def windows(gray):
    """(4, 2, 192, 192) float16 bounded gradients of a luma image: squeezed whole, centre and two lower corners in pixels.

    Marks are placed by shares of the picture or by pixels from its middle or corners. None if a side has under 96.
    """
    height, width = gray.shape
    if min(height, width) < SIDE // 2:
        return None
    gray = gray if min(gray.shape) >= SIDE else cv2.resize(gray, (max(SIDE, width), max(SIDE, height)))
    height, width = gray.shape
    top, left = (height - SIDE) // 2, (width - SIDE) // 2
    cut = [cv2.resize(gray, (SIDE, SIDE), interpolation=cv2.INTER_AREA), gray[top:top + SIDE, left:left + SIDE],
           gray[-SIDE:, :SIDE], gray[-SIDE:, -SIDE:]]
    return np.stack([_bounded(window) for window in cut])


def _bounded(window):
    window = window.astype(np.float32)
    gradients = np.stack([cv2.Sobel(window, cv2.CV_32F, 1, 0, scale=0.25), cv2.Sobel(window, cv2.CV_32F, 0, 1, scale=0.25)])
    strength = np.hypot(gradients[0], gradients[1])
    bounded = gradients / (strength + 6)
    # letterbox edges and frames are alike in many images; a straight line across the window is no mark
    for axis in (1, 2):
        straight = (strength > 8).mean(axis - 1) > 0.8
        bounded[(slice(None), slice(None), straight) if axis == 1 else (slice(None), straight)] = 0
    edge = 3
    bounded[:, :edge] = bounded[:, -edge:] = 0
    bounded[:, :, :edge] = bounded[:, :, -edge:] = 0
    return bounded.astype(np.float16)


def learn(samples, least=16):
    """Patterns of a list of :func:`windows`: ``{place: (two patterns, each (2, 192, 192))}`` of the places that have one.

    A place has one when at least 0.6 ``least`` images of the sample carry it.
    """
    patterns = {}
    if len(samples) < least:
        return patterns
    for number, place in enumerate(PLACES):
        stack = np.stack([sample[number] for sample in samples])
        halves = stack[0::2], stack[1::2]
        made = [half.mean(0, dtype=np.float32) for half in halves]
        for _ in range(3):                                # what fits the other half's pattern makes the next one
            scores = [np.array([score(image, made[1 - k]) for image in half]) for k, half in enumerate(halves)]
            chosen = [s >= max(min(FOUND, np.sort(s)[-max(4, least // 4)]), 3) for s in scores]
            if min(c.sum() for c in chosen) < max(4, least // 4):
                break
            made = [half[c].mean(0, dtype=np.float32) for half, c in zip(halves, chosen)]
        scores = [np.array([score(image, made[1 - k]) for image in half]) for k, half in enumerate(halves)]
        if sum((s > FOUND).sum() for s in scores) >= 0.6 * least:
            patterns[place] = tuple(made)
    return patterns


def score(window, pattern):
    """How far a window's correlation with a pattern stands above those at other shifts, in standard deviations."""
    spectrum = sum(np.fft.rfft2(window[k].astype(np.float32)) * np.conj(np.fft.rfft2(pattern[k])) for k in range(2))
    surface = np.fft.irfft2(spectrum, (SIDE, SIDE))
    near = np.roll(surface, (_REACH, _REACH), (0, 1))[:2 * _REACH + 1, :2 * _REACH + 1].max()
    return float((near - surface.mean()) / (surface.std() + 1e-9))


def best(sample, patterns, half=None):
    """The highest score of :func:`windows` over all places; ``half`` names the half of the sample that an image was in,
    so that the pattern of the other is taken."""
    scores = [0.0]
    for place, pair in patterns.items():
        window = sample[PLACES.index(place)]
        scores.append(score(window, pair[1 - half]) if half is not None else max(score(window, p) for p in pair))
    return max(scores)
