"""What each level of a network is worth: the PSNR that validation images lose without some of its repeats or channels.

A level is one entry of a depth. Its blocks are the convolutions that run more often when the level repeats more, so nothing
here knows a network by name. Channels are taken away as in filter pruning (Li et al., arXiv 1608.08710): the filters whose
weights have the smallest sum of magnitudes are set to zero, in every dense convolution of the level's blocks.
"""

import collections
import contextlib
import dataclasses

import torch
from torch import nn

from restore.depth import format_depth
from restore.errors import RestoreError
from restore.text import table as text_table
from restore.validation import summarise, validate

SHARES = tuple(n / 8 for n in range(1, 8))


@dataclasses.dataclass
class Importance:
    """Costs in dB of mean PSNR over tasks, against the network at ``repeats`` (whose own is ``psnr``).

    without_repeats: for each level ``[0, cost of one repeat less, of two less ...]``, down to one repeat.
    without_channels: for each level ``{share: cost}``, with ``0.0: 0.0``.
    """
    repeats: tuple
    psnr: float
    without_repeats: list
    without_channels: list


def level_convolutions(model):
    """For each level the names of its blocks' dense convolutions; raises RestoreError for a network of one fixed depth."""
    if not model.levels:
        raise RestoreError(f"{model.name}: has one fixed depth and no levels that repeat; take a network with depths, such "
                           "as anydepth")
    once = _calls(model, (1,) * model.levels)
    levels = []
    for level in range(model.levels):
        more = _calls(model, tuple(2 if i == level else 1 for i in range(model.levels)))
        levels.append([name for name, module in model.named_modules()
                       if isinstance(module, nn.Conv2d) and module.groups == 1 and more[name] > once[name]])
    return levels


def _calls(model, repeats):
    """How often each convolution runs at a depth."""
    count, handles = collections.Counter(), []
    for name, module in model.named_modules():
        if isinstance(module, nn.Conv2d):
            handles.append(module.register_forward_hook(lambda *_, name=name: count.update([name])))
    parameter = next(model.parameters())
    try:
        with torch.no_grad():
            model(torch.zeros(1, 3, 32, 32, device=parameter.device), repeats)
    finally:
        for handle in handles:
            handle.remove()
    return count


@contextlib.contextmanager
def without_filters(model, names, share):
    """Within the block the ``share`` of filters with the smallest weights of the named convolutions, of each, is zero."""
    kept = []
    with torch.no_grad():
        for name in names:
            module = model.get_submodule(name)
            weak = module.weight.abs().sum(dim=(1, 2, 3)).argsort()[:round(share * len(module.weight))]
            for parameter in filter(lambda p: p is not None, (module.weight, module.bias)):
                kept.append((parameter, parameter.clone()))
                parameter[weak] = 0
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, values in kept:
                parameter.copy_(values)


def measure(model, pairs, repeats, device="cpu", shares=SHARES, progress=lambda steps: None):
    """The :class:`Importance` of a network's levels at ``repeats``, on :class:`restore.validation.Pair` s.

    Each level is changed alone, the others stay whole. ``progress(1)`` is called after each of the
    ``1 + sum(repeats - 1) + levels * len(shares)`` evaluations.
    """
    blocks = level_convolutions(model)

    def quality(depth):
        scores = summarise([validate(model, pairs, [format_depth(depth)], device)])
        progress(1)
        return scores[format_depth(depth)]["mean"]

    psnr = quality(repeats)
    shorter = [[0.0] + [psnr - quality(tuple(r if i == level else n for i, n in enumerate(repeats)))
                        for r in range(repeats[level] - 1, 0, -1)] for level in range(model.levels)]
    narrower = []
    for names in blocks:
        costs = {0.0: 0.0}
        for share in shares:
            with without_filters(model, names, share):
                costs[share] = psnr - quality(repeats)
        narrower.append(costs)
    return Importance(tuple(repeats), psnr, shorter, narrower)


def table(importance):
    """The costs as lines of text, one a level."""
    shares = [share for share in importance.without_channels[0] if share]
    most = max(map(len, importance.without_repeats))
    head = ("level", "repeats", *(f"-{n} repeat{'s'[:n > 1]}" for n in range(1, most)),
            *(f"-{100 * share:g}% channels" for share in shares))
    rows = []
    for level, (shorter, narrower) in enumerate(zip(importance.without_repeats, importance.without_channels)):
        cells = [f"{cost:+.2f}" for cost in shorter[1:]] + [""] * (most - len(shorter))
        rows.append((str(level + 1), str(importance.repeats[level]), *cells, *(f"{narrower[share]:+.2f}" for share in shares)))
    return "\n".join([f"dB lost of {importance.psnr:.2f} dB without", *text_table(head, rows)])
