"""How strongly a picture was once compressed as JPEG, from its pixels: also in a PNG, and under a milder second JPEG.

A decoded JPEG's 8x8 DCT coefficients lie near multiples of the quantisation steps (Fan and de Queiroz, "Identification
of bitmap compression history", 2003). The grid's place is where steps between neighbouring pixels are largest; the step
of each low frequency is the largest q for which the coefficients above q / 2 gather at multiples of q. A resized JPEG has
lost its grid and is not recognised.
"""

import numpy as np

# low frequencies (row, column) and their entries in the luma table of the JPEG standard's annex K
_FREQUENCIES = ((0, 1, 11), (1, 0, 12), (1, 1, 12), (0, 2, 10), (2, 0, 14), (1, 2, 14), (2, 1, 13), (2, 2, 16),
                (0, 3, 16), (3, 0, 14))
_BLOCKS, _RUN = 600, 12                    # looked at per image, so many side by side
_BINS = 400                                # of one level each
_STEPS = np.arange(4, 81)
_GATHERED, _FEWEST = 0.55, 25              # mean cosine from which values count as gathered; of at least so many values


def _tables():
    k = np.arange(8)
    dct = np.sqrt(2 / 8) * np.cos(np.pi * (2 * k[None] + 1) * k[:, None] / 16)
    dct[0] /= np.sqrt(2)
    basis = np.stack([np.outer(dct[i], dct[j]).ravel() for i, j, _ in _FREQUENCIES], 1).astype(np.float32)
    values = np.arange(_BINS)[None]
    above = (values > 0.5 * _STEPS[:, None]).astype(np.float32)
    # sum of cosines less what would be enough of it, for the values above; and how many these are
    excess = (np.cos(2 * np.pi * values / _STEPS[:, None]) - _GATHERED) * above
    return basis, np.concatenate([excess, above]).astype(np.float32)


_BASIS, _WEIGHTS = _tables()


def grid_phase(steps):
    """``(phase, ratio)``: where an 8-pixel grid would lie in a profile of mean steps between neighbours, and how much
    larger the steps there are than those that do not touch it."""
    padded = np.full(-(-len(steps) // 8) * 8, np.nan)
    padded[:len(steps)] = steps
    padded = padded.reshape(-1, 8)
    unseen = np.isnan(padded)
    padded[unseen] = 0
    means = padded.sum(0) / np.maximum(1, len(padded) - unseen.sum(0))
    best = int(means.argmax())
    beside = np.mean([means[(best + k) % 8] for k in (2, 3, 4, 5, 6)])
    return (best + 1) % 8, float((means[best] + 0.05) / (beside + 0.05))


def pixel_quality(gray, left, top):
    """libjpeg's quality 1..100 whose tables fit the steps found in a uint8 picture whose grid begins at (left, top);
    100 when no trace is found (or the quality was above about 90)."""
    height, width = (gray.shape[0] - top) // 8, (gray.shape[1] - left) // 8
    if height * width < 4 * _FEWEST:
        return 100.0
    chosen = np.arange(height * width)
    if len(chosen) > _BLOCKS:              # runs of neighbours: each new place in memory costs more than its values
        chosen = (np.linspace(0, len(chosen) - _RUN, _BLOCKS // _RUN).astype(int)[:, None] + np.arange(_RUN)).ravel()
    grid = gray[top:top + 8 * height, left:left + 8 * width].reshape(height, 8, width, 8)
    blocks = grid[chosen // width, :, chosen % width].reshape(-1, 64).astype(np.float32)
    bins = np.minimum((np.abs(blocks @ _BASIS) + 0.5).astype(np.int32), _BINS - 1)
    scales = np.zeros(len(_FREQUENCIES))
    bins += np.arange(bins.shape[1]) * _BINS             # one histogram beside the other
    counts = np.bincount(bins.ravel(), minlength=bins.shape[1] * _BINS).reshape(-1, _BINS).T.astype(np.float32)
    counts[-1] = 0                          # larger values were put into the last bin: their phase is not known
    excess, many = np.split(_WEIGHTS @ counts, 2)
    gathered = (excess > 0) & (many >= _FEWEST)
    for k, (_, _, standard) in enumerate(_FREQUENCIES):
        found = np.flatnonzero(gathered[:, k])
        scales[k] = 100 * _STEPS[found[-1]] / standard if len(found) else 0
    scale = float(np.median(scales))
    return 100.0 if scale == 0 else max(1.0, 5000 / scale if scale > 100 else (200 - scale) / 2)
