"""Validation during training: the same pairs at every depth, PSNR per task, and a strip of pictures."""

import dataclasses

import numpy as np
import torch

from .depth import parse_depth
from .files import atomic_path
from .metrics import psnr

STRIP_SIDE = 192        # pixels of an image in the strip
STRIP_ROWS = 6
STRIP_HEAD = 16         # pixels of the line of names above


@dataclasses.dataclass
class Pair:
    """One validation image: ``input`` and ``target`` float32 (3, h, w) in [0, 1]; scores are averaged per ``task`` (a
    word).
    """
    name: str
    task: str
    input: torch.Tensor
    target: torch.Tensor


def validate(network, pairs, depths, device, strip=None):
    """``{depth: {task: [PSNR of each pair]}}`` of float32 outputs clamped to [0, 1], RGB, no border cut; at most 100
    dB.

    Images are restored whole, or in tiles where the memory asks for it, by :class:`restore.restorer.Restorer`. The
    input's own scores are under the depth ``"input"``. strip: path of a PNG to write: input, each depth, target of the
    first pairs.
    """
    from .restorer import Restorer
    mode = network.training
    scores, rows, shown = {}, [], _shown(pairs)
    try:
        with torch.compiler.set_stance("force_eager"):          # a compiled network would compile anew for each size
            restorer = Restorer(network, device=device)
            restorers = {name: restorer.at(parse_depth(name)) for name in depths}
            for i, pair in enumerate(pairs):
                row = {"input": pair.input, **{name: r.restore(pair.input).cpu() for name, r in restorers.items()}}
                for name, image in row.items():
                    score = psnr(image, pair.target, limit=100)
                    scores.setdefault(name or "only", {}).setdefault(pair.task, []).append(score)
                if i in shown:
                    rows.append({**row, "target": pair.target})
    finally:
        network.train(mode)
    if strip is not None and rows:
        write_strip(strip, rows)
    return scores


def summarise(parts):
    """``{depth: {task: mean PSNR, "mean": mean over tasks}}`` from what :func:`validate` gave in each process."""
    joined, table = {}, {}
    for depth, task, values in ((d, t, v) for part in parts for d, tasks in part.items() for t, v in tasks.items()):
        joined.setdefault(depth, {}).setdefault(task, []).extend(values)
    for depth, tasks in joined.items():
        means = {task: float(np.mean(values)) for task, values in sorted(tasks.items())}
        table[depth] = {**means, "mean": float(np.mean(list(means.values())))}
    return table


def write_strip(path, rows):
    """Rows of named images {name: float (3, h, w)} as one PNG: of each the middle, ``STRIP_SIDE`` pixels at most."""
    import cv2
    cells = [[_middle(image) for image in row.values()] for row in rows]
    wide, height = max(row[0].shape[1] for row in cells) + 2, sum(row[0].shape[0] + 2 for row in cells)
    sheet = np.full((STRIP_HEAD + height, wide * len(rows[0]), 3), 255, np.uint8)
    for column, name in enumerate(rows[0]):
        place = (column * wide + 2, STRIP_HEAD - 4)
        cv2.putText(sheet, str(name or "output"), place, cv2.FONT_HERSHEY_SIMPLEX, 0.4, (0, 0, 0), 1, cv2.LINE_AA)
    top = STRIP_HEAD
    for row in cells:
        for column, cell in enumerate(row):
            sheet[top:top + cell.shape[0], column * wide:column * wide + cell.shape[1]] = cell
        top += row[0].shape[0] + 2
    with atomic_path(path) as temporary:
        cv2.imwrite(str(temporary), sheet[..., ::-1])


def _shown(pairs):
    """Places of the pairs in the strip: the tasks in turn, and of each task the first images."""
    turns, met = [], {}
    for place, pair in enumerate(pairs):
        met[pair.task] = met.get(pair.task, -1) + 1
        turns.append((met[pair.task], place))
    return {place for _, place in sorted(turns)[:STRIP_ROWS]}


def _middle(image):
    height, width = image.shape[-2:]
    side_h, side_w = min(height, STRIP_SIDE), min(width, STRIP_SIDE)
    top, left = (height - side_h) // 2, (width - side_w) // 2
    part = image[:, top:top + side_h, left:left + side_w].clamp(0, 1).mul(255).round().byte()
    return part.permute(1, 2, 0).numpy()
