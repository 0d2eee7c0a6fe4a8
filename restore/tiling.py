"""An image in overlapping tiles, and the tiles blended back into an image.

Each tile gives away a margin on every side that has a neighbour, since a network pads there with what is not in the
image; what is left overlaps, and is blended with a raised cosine. All weights are positive, up to the frame, and
they add up to one: a network whose receptive field is smaller than the margin gives the same result in tiles.
"""

import itertools
import math

import torch


def spans(length, tile, overlap, multiple=1):
    """``[(start, stop), ...]`` of tiles of at most ``tile`` that cover ``length`` and share at least ``overlap``.

    Starts are multiples of ``multiple``, as is the length of every tile but the last, so that a network which pads to
    this multiple sees the same grid everywhere. Small tiles share less: at most half of their length.
    """
    if tile >= length:
        return [(0, length)]
    tile = max(multiple, tile // multiple * multiple)
    overlap = min(overlap, tile // 2)
    last = -(-(length - tile) // multiple)                         # in multiples, as the step is
    count = -(-last // max(1, (tile - overlap) // multiple))
    starts = [multiple * (index * last // count) for index in range(count + 1)]
    return [(start, min(start + tile, length)) for start in starts]


def weights(cuts):
    """``[(start, vector), ...]``: for each span of ``cuts`` its weights, all positive, adding up to one everywhere.

    A vector is shorter than its span by the margins: a quarter of what the span shares with each neighbour.
    """
    vectors = []
    for index, (start, stop) in enumerate(cuts):
        before = cuts[index - 1][1] - start if index else 0
        after = stop - cuts[index + 1][0] if index + 1 < len(cuts) else 0
        left, right = before // 4, after // 4
        vector = torch.ones(stop - start - left - right, dtype=torch.float64)
        for shared, flip in ((before, False), (after, True)):
            ramp = min(shared - 2 * (shared // 4), len(vector))
            if ramp > 0:
                rise = torch.sin((torch.arange(ramp, dtype=torch.float64) + 0.5) * (math.pi / 2 / ramp)) ** 2
                part = vector.flip(0) if flip else vector
                part[:ramp] *= rise
                vector = part.flip(0) if flip else part
        vectors.append((start + left, vector))
    total = torch.zeros(cuts[-1][1], dtype=torch.float64)
    for start, vector in vectors:
        total[start:start + len(vector)] += vector
    return [(start, (vector / total[start:start + len(vector)]).float()) for start, vector in vectors]


def run_tiled(run, image, tile, overlap, multiple=1, progress=None):
    """``run`` over ``image`` ``(3, h, w)`` in tiles of at most ``tile`` (height, width), blended.

    ``run(piece, report)`` returns a tensor like ``piece`` and may report the pixels that it has done; ``progress``
    gets numbers of pixels of ``image`` that add up to ``h * w``. Beside the result, which lies where ``image`` lies,
    only one tile is held at a time.
    """
    _, height, width = image.shape
    rows, columns = spans(height, tile[0], overlap, multiple), spans(width, tile[1], overlap, multiple)
    cells = [_cells(rows), _cells(columns)]
    down, across = weights(rows), weights(columns)
    out = torch.zeros_like(image)
    for (top, bottom), (y, by_row), high in zip(rows, down, cells[0], strict=True):
        for (left, right), (x, by_column), wide in zip(columns, across, cells[1], strict=True):
            share = high * wide / ((bottom - top) * (right - left))
            report = None if progress is None else lambda done, share=share: progress(done * share)
            piece = run(image[:, top:bottom, left:right], report)
            kept = piece[:, y - top:y - top + len(by_row), x - left:x - left + len(by_column)]
            weight = by_row[:, None] * by_column
            out[:, y:y + len(by_row), x:x + len(by_column)] += kept.to(out.device) * weight.to(out.device)
    return out


def shares(rows, columns):
    """``[(computed, advanced), ...]`` of the tiles of these spans, in the order of :func:`run_tiled`: pixels of the tile, and
    how many of the image's are then done; the latter add up to the image."""
    return [((bottom - top) * (right - left), high * wide)
            for (top, bottom), high in zip(rows, _cells(rows), strict=True)
            for (left, right), wide in zip(columns, _cells(columns), strict=True)]


def _cells(cuts):
    """How much of the whole length each span advances."""
    starts = [start for start, _ in cuts] + [cuts[-1][1]]
    return [after - before for before, after in itertools.pairwise(starts)]
