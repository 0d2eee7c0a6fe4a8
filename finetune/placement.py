"""Where an adapter is worth its numbers: a short measurement of every layer, before anything is trained.

The gradient of the adaptation's loss says how much a small change of a layer would lower it. Of a change of rank r only the r
strongest directions of that gradient count. A layer's gain is taken for a change of one hundredth of its weight's norm, which
makes layers of different scales comparable, and is divided by the numbers that its factors take. Adapters go where that
quotient is highest, until the budget is spent.
"""

import dataclasses

import torch
from torch import nn

from restore.adapter import factors


@dataclasses.dataclass
class Place:
    """A parameter to change. gain: by which a change of 1 % lowers the loss, to first order. numbers: that the change takes.
    start: the gradient's strongest directions (rank, rest), where ``down`` starts (LoRA-GA, arXiv 2407.05000); None for a whole
        change."""
    name: str
    gain: float
    numbers: int
    start: torch.Tensor | None


def layers(model):
    """``{parameter name: weight}`` of the convolutions and linear layers, each weight once."""
    own = {id(p): name for name, p in model.named_parameters()}
    modules = [m for m in model.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    return {own[id(m.weight)]: m.weight for m in modules if id(m.weight) in own}


def measure(model, loss, samples, rank):
    """A :class:`Place` for every layer, the best first; ``loss(weights, sample)`` is the mean loss with changed weights."""
    own = layers(model)
    weights = {name: weight.detach().clone().requires_grad_() for name, weight in own.items()}
    for sample in samples:                       # summed, so that what differs from sample to sample cancels
        loss(weights, sample).backward()
    places = []
    for name, weight in weights.items():
        gradient = weight.grad
        if gradient is None:                     # a layer that the forward does not use
            continue
        gradient = gradient / len(samples)
        shape = factors(weight.shape, rank)
        if shape is None:
            strength, numbers, start = gradient.norm(), weight.numel(), None
        else:
            _, values, directions = torch.linalg.svd(gradient.reshape(len(weight), -1), full_matrices=False)
            strength, numbers, start = values[:rank].norm(), rank * (shape[0] + shape[2]), directions[:rank].contiguous()
        places.append(Place(name, float(0.01 * strength * weight.detach().norm()), numbers, start))
    return sorted(places, key=lambda place: (-place.gain / place.numbers, place.name))


def choose(places, budget):
    """The best of the measured ``places`` that together take at most ``budget`` numbers; at least one."""
    chosen, left = places[:1], budget - places[0].numbers
    for place in places[1:]:
        if place.numbers <= left and place.gain > 0:
            chosen.append(place)
            left -= place.numbers
    return chosen


def table(places, chosen, limit=12):
    """What was measured, in words and columns."""
    total, taken = sum(p.gain for p in places), {p.name for p in chosen}
    width = max(len(p.name) for p in places[:limit])
    lines = [f"{'layer':<{width}}  gain of 1 %  numbers"]
    lines += [f"{p.name:<{width}}  {p.gain:11.2e}  {p.numbers:7d}{'' if p.name in taken else '  (not taken)'}"
              for p in places[:limit]]
    if len(places) > limit:
        lines.append(f"... and {len(places) - limit} more")
    share = sum(p.gain for p in chosen) / total if total else 0
    numbers = sum(p.numbers for p in chosen)
    lines.append(f"{len(chosen)} of {len(places)} layers with {numbers:,} numbers: {share:.0%} of the whole gain")
    return "\n".join(lines)
