"""The mean of several checkpoints that were fine-tuned from the same weights: one network that often generalises better than
each of them, at no cost in use (model soups, Wortsman et al., arXiv 2203.05482)."""

import torch
from torch import nn

from restore import checkpoint
from restore.errors import RestoreError


def average(paths):
    """The network with the mean of the weights in ``paths``, two or more; its provenance lists theirs.

    Raises RestoreError for checkpoints of different networks, and for batch normalisation, whose statistics belong to one set
    of weights.
    """
    if len(paths) < 2:
        raise RestoreError(f"{', '.join(map(str, paths))}: an average needs two checkpoints or more")
    models = [checkpoint.load(path) for path in paths]
    first = models[0]
    for path, model in zip(paths, models):
        if (model.name, model.config) != (first.name, first.config):
            raise RestoreError(f"{path}: {model.name} of other settings than {paths[0]}; only checkpoints of one network have "
                               "an average")
    if any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in first.modules()):
        raise RestoreError(f"{paths[0]}: the statistics of its batch normalisations belong to these weights; fold them first "
                           "(python -m finetune fold)")
    weights = [model.state_dict() for model in models]
    first.load_state_dict({key: torch.stack([w[key] for w in weights]).mean(0) for key in weights[0]})
    first.provenance = {"average_of": [model.provenance for model in models]}
    return first
