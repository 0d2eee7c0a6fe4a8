"""Means with intervals, and the fair comparison of two models: image by image, on the same images.

Intervals are 95 % percentile bootstraps over images (Efron 1979) with a fixed seed. The images of a set are resampled alike
wherever the set appears, so that three noise levels of one set do not count as three sets.
"""

import zlib

import numpy as np

RESAMPLES = 10_000


def resample(values, name, resamples=RESAMPLES):
    """Bootstrap means ``(resamples,)`` of ``values``; the images drawn depend on ``name`` and on how many there are."""
    values = np.asarray(values, dtype=np.float64)
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    means = np.empty(resamples)
    for start in range(0, resamples, 500):              # in parts: 10,000 resamples of 3,000 images would take 240 MB
        part = means[start:start + 500]
        part[:] = values[rng.integers(0, len(values), (len(part), len(values)))].mean(1)
    return means


def interval(means):
    """The 2.5 % and 97.5 % percentiles of bootstrap means."""
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)


def summarise(values, name):
    """``{"mean", "low", "high", "n"}`` of one number per image."""
    low, high = interval(resample(values, name))
    return {"mean": float(np.mean(values)), "low": low, "high": high, "n": len(values)}


def mean_of_entries(by_entry):
    """The mean over entries of their means, with its interval; ``by_entry`` is a list of ``(values, name)``."""
    low, high = interval(np.mean([resample(values, name) for values, name in by_entry], axis=0))
    return {"mean": float(np.mean([np.mean(values) for values, _ in by_entry])), "low": low, "high": high}


def compare(first, second, name, better="higher"):
    """``first - second`` on the same images: mean difference, its interval, and how often each wins.

    ``first`` and ``second`` are numbers of the same images in the same order; a tie counts for nobody.
    """
    difference = np.asarray(first, dtype=np.float64) - np.asarray(second, dtype=np.float64)
    low, high = interval(resample(difference, name))
    signed = difference if better != "lower" else -difference
    return {"difference": float(difference.mean()), "low": low, "high": high, "n": len(difference),
            "wins": int((signed > 0).sum()), "losses": int((signed < 0).sum()), "ties": int((signed == 0).sum())}
