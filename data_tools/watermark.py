"""Watermarks, found per source: what the gradients of many images of one place have in common.

A mark on a single image cannot be told from its content without learned weights. Across the images of one source the
content averages out and the mark stays (Dekel, Rubinstein, Liu and Freeman, "On the effectiveness of visible
watermarks", CVPR 2017, take the median gradient). Here the gradients are bounded first and then averaged, which is as
robust as a median and also sees a mark that only a part of the images carries; the images that fit the pattern best then make it
anew. Every image is scored with a pattern made without it, by how far the correlation at the
right place stands above those at all other shifts.

A source needs some sixteen marked images. What is alike for another reason, such as a fixed camera's frame, is found
as well.
"""

import cv2
import numpy as np

SIDE = 192                                 # of the windows that are compared
PLACES = ("whole", "centre", "lower left", "lower right")
_REACH = 3                                 # pixels by which a mark may be off its place
FOUND = 4.0                                # standard deviations above the correlations at other shifts: a marked image
_SURE = 5.5                                # the same, for what may establish a pattern


def windows(gray):
    """(4, 2, 192, 192) float16 bounded gradients of a luma image: squeezed whole, centre, two lower corners.

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
    gradients = np.stack([cv2.Sobel(window, cv2.CV_32F, *axis, scale=0.25) for axis in ((1, 0), (0, 1))])
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
    """``(patterns, scores)`` of a list of :func:`windows`: ``{place: pattern (2, 192, 192)}`` of the places that have a
    mark, and for each sample its highest score, every one against a pattern made of the others.

    First the sample is cut in two and each half scored with the other's pattern: a place has a mark when at least
    0.6 ``least`` images stand out so. Then the pattern is made of all that carry it.
    """
    patterns, best_scores = {}, np.zeros(len(samples))
    if len(samples) < least:
        return patterns, best_scores
    for number, place in enumerate(PLACES):
        stack = np.stack([sample[number] for sample in samples])
        half = np.arange(len(stack)) % 2
        chosen = np.ones(len(stack), bool)
        for _ in range(4):                                # what fits the other half's pattern makes the next one
            made = [_pattern(stack[chosen & (half == k)]) for k in (0, 1)]
            scores = np.array([score(window, made[1 - k]) for window, k in zip(stack, half)])
            fit = scores > min(_SURE, np.sort(scores)[-max(8, least // 2)])
            if min((fit & (half == k)).sum() for k in (0, 1)) < 4:
                break
            chosen = fit
        if (scores > _SURE).sum() < 0.6 * least:
            continue
        for _ in range(2):
            chosen = scores > FOUND
            total = stack[chosen].sum(0, dtype=np.float32)
            scores = np.array([score(window, _pattern((total - window * own)[None] / max(1, chosen.sum() - own)))
                               for window, own in zip(stack, chosen)])
        patterns[place] = _pattern(stack[scores > FOUND])
        best_scores = np.maximum(best_scores, scores)
    return patterns, best_scores


def _pattern(stack):
    """Mean of bounded gradients where it stands out of what is left of the content, zero elsewhere."""
    mean = stack.mean(0, dtype=np.float32)
    strength = np.hypot(mean[0], mean[1])
    return mean * (strength > 2.5 * np.median(strength[strength > 0])) if strength.any() else mean


def score(window, pattern):
    """How far a window's correlation with a pattern stands above those at other shifts, in standard deviations."""
    spectrum = sum(np.fft.rfft2(window[k].astype(np.float32)) * np.conj(np.fft.rfft2(pattern[k])) for k in range(2))
    surface = np.fft.irfft2(spectrum, (SIDE, SIDE))
    near = np.roll(surface, (_REACH, _REACH), (0, 1))[:2 * _REACH + 1, :2 * _REACH + 1].max()
    return float((near - surface.mean()) / (surface.std() + 1e-9))


def best(sample, patterns):
    """The highest score of :func:`windows` against the patterns of :func:`learn`; 0 without any."""
    return max([0.0, *(score(sample[PLACES.index(place)], pattern) for place, pattern in patterns.items())])
