"""Depths: how often the shared block of each level is applied, by name or by tuple, and what that costs.

A depth is a tuple of repeats, one a level; for DyNet ``(level 1, level 2, level 3, latent)``, where the encoder and
the decoder of a level repeat equally. Choosing a depth never copies weights.
"""

import contextlib
import copy
import re

from .errors import RestoreError

MAX_REPEATS = 64


def parse_depth(text):
    """``None``, a name, a tuple, or text such as ``"2,3,3,4"`` as what ``model(x, depth=...)`` takes.

    Raises :class:`RestoreError` for text that is neither a name nor a list of whole numbers.
    """
    if text is None or not isinstance(text, str):
        return text if text is None else tuple(text)
    if re.fullmatch(r"\s*\(?\s*\d+(\s*,\s*\d+)*\s*,?\s*\)?\s*", text):
        return tuple(int(number) for number in re.findall(r"\d+", text))
    if re.fullmatch(r"[A-Za-z][\w-]*", text.strip()):
        return text.strip()
    raise RestoreError(f"depth {text!r}: give a name such as small or large, or repeats such as 2,3,3,4")


def format_depth(depth):
    """``(2, 3, 3, 4)`` as ``"2,3,3,4"``; names and ``None`` as they are."""
    return ",".join(map(str, depth)) if isinstance(depth, (tuple, list)) else depth


def resolve_depth(depth, named, default, levels, model="this network"):
    """The tuple of repeats that ``depth`` (a name, text, a tuple or ``None``) means.

    ``named`` maps names to tuples, ``default`` is one of its keys and ``levels`` the length of a tuple. Raises
    :class:`RestoreError` for an unknown name, a wrong count of levels, or repeats outside 1..64.
    """
    depth = default if depth is None else parse_depth(depth)
    if isinstance(depth, str):
        if depth not in named:
            known = ", ".join(named) or "none by name"
            raise RestoreError(f"depth {depth!r}: {model} has {known}"
                               + (f"; any {levels} repeats such as {format_depth((2,) * levels)} work too"
                                  if levels else ": its depth is fixed"))
        return tuple(named[depth])
    if not levels:
        raise RestoreError(f"depth {format_depth(depth)}: {model} has one fixed depth")
    if len(depth) != levels or not all(isinstance(r, int) and 1 <= r <= MAX_REPEATS for r in depth):
        raise RestoreError(f"depth {format_depth(depth)}: {model} takes {levels} repeats, each from 1 to {MAX_REPEATS}")
    return tuple(depth)


def count_parameters(model):
    """Trainable numbers of a network; buffers such as BatchNorm's statistics are not counted."""
    return sum(p.numel() for p in model.parameters())


def count_macs(model, height, width, depth=None):
    """Multiply-accumulates of one ``height`` x ``width`` image through ``model`` at ``depth``.

    Counts convolutions, linear layers and the products of attention, each where it stands; element-wise work,
    normalisation and resizing are left out, as is usual in the field. The network runs on the meta device, so a
    24-megapixel image costs no more than a small one.
    """
    import torch
    skeleton = copy.deepcopy(model, _sharing_weights(model)).to("meta").eval()
    return _count(skeleton, torch.empty(1, 3, height, width, device="meta"), depth)


def macs_of_sizes(model, depth=None):
    """A function ``(height, width)`` that gives what :func:`count_macs` does without running the network each time.

    What is counted grows in proportion to the pixels, padded to the network's multiple: two small images give the line and a
    third must lie on it. Of a network that is not like this, or that is a file, each size is counted by itself.
    """
    weight = next(model.parameters(), None)
    if weight is not None and weight.device.type != "meta":
        copied = copy.deepcopy(model, _sharing_weights(model)).eval()
        areas, counts = [], []
        for side in (model.minimum + step * model.multiple for step in range(3)):
            areas.append(_cells(model, side, side))
            counts.append(_count(copied, weight.new_zeros(1, 3, side, side), depth))
        per_cell, rest = divmod(counts[2] - counts[0], areas[2] - areas[0])
        fixed = counts[0] - per_cell * areas[0]
        if not rest and counts[1] == fixed + per_cell * areas[1]:
            return lambda height, width: fixed + per_cell * _cells(model, height, width)
    return lambda height, width: count_macs(model, height, width, depth)


def _cells(model, height, width):
    """How many squares of the network's multiple an image has once it is padded."""
    rows, columns = (-(-max(model.minimum, side) // model.multiple) for side in (height, width))
    return rows * columns


def _count(model, x, depth):
    import torch
    from torch import nn

    total = 0

    def convolution(module, _, output):
        nonlocal total
        total += output.numel() * module.weight[0].numel()

    def linear(module, _, output):
        nonlocal total
        total += output.numel() * module.in_features

    def products(module, inputs, _):
        nonlocal total
        total += module.product_macs(inputs[0].shape)

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Conv2d):
                hooks.enter_context(_hook(module, convolution))
            elif isinstance(module, nn.Linear):
                hooks.enter_context(_hook(module, linear))
            elif hasattr(module, "product_macs"):
                hooks.enter_context(_hook(module, products))
        model(x, depth)
    return total


def _sharing_weights(model):
    """A deepcopy memo that keeps tensors uncopied: only the modules around them are needed."""
    return {id(t): t for t in [*model.parameters(), *model.buffers()]}


@contextlib.contextmanager
def _hook(module, function):
    handle = module.register_forward_hook(function)
    try:
        yield
    finally:
        handle.remove()
