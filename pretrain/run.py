"""From a recipe to a trained network: ``run(recipe, out)``, which ``python -m pretrain`` calls."""

import torch
from torch import nn

from restore import checkpoint
from restore.corpus import digest, hold_out, open_corpus
from restore.depth import parse_depth
from restore.errors import CheckpointError, ImageError, RestoreError
from restore.models import create_model
from restore.training import train

from .mixture import Mixture, validation_pairs
from .recipe import TASKS


def run(recipe, out, resume=False, samples=None):
    """Pre-train as the :class:`pretrain.recipe.Recipe` says; returns the folder ``out/final``.

    samples: the recipe's own :class:`Mixture`, from a run before with the same data, which holds them in memory.
    Raises RestoreError: nothing usable in the corpus, or what :func:`restore.training.train` raises.
    """
    model = build_model(recipe)
    corpus, pairs = build_data(recipe)
    classify = bool(recipe.targets.tasks and recipe.targets.classify)
    return train(
        model,
        samples or Mixture(corpus, recipe, data_device(recipe)),
        recipe,
        out,
        resume=resume,
        validation=pairs,
        head=Head(latent_channels(model), len(TASKS)) if classify else None,
        head_weight=recipe.targets.classify,
        provenance={"corpus": {"source": recipe.data.source, "images": corpus.count, "sha256": digest(corpus)}},
    )


def build_model(recipe):
    """The network with fresh weights that only ``recipe.seed`` decides, or with those of ``recipe.start``."""
    options = dict(recipe.model.options)
    if recipe.model.depths:
        options["depths"] = recipe.model.depths
        if options.get("default_depth", "large") not in recipe.model.depths:
            options["default_depth"] = max(recipe.model.depths, key=lambda name: sum(recipe.model.depths[name]))
    torch.manual_seed(recipe.seed)
    try:
        model = create_model(recipe.model.name, **options)
    except RestoreError as error:
        raise RestoreError(f"model: {error}") from None
    if recipe.start:
        try:
            model.load_state_dict(checkpoint.load(recipe.start).state_dict())
        except CheckpointError as error:
            raise RestoreError(f"start: {error}") from None
        except RuntimeError:
            raise RestoreError(f"start: {recipe.start} holds another network than the recipe's {model.name}") from None
    return model


def build_data(recipe):
    """``(corpus, validation pairs)``; checks first that the corpus holds something that can be read."""
    data, validation = recipe.data, recipe.validation
    corpus = open_corpus(data.source, data.kind, data.column, data.split, data.streaming)
    require_readable(corpus)
    if validation.source:
        held = open_corpus(validation.source)
        return corpus, validation_pairs(held, range(held.count or validation.last), recipe)
    if not validation.last:
        return corpus, []
    if corpus.count is None:
        raise RestoreError(
            "validation.last: a stream has no last images; give validation.source, or validation.last: 0"
        )
    if corpus.count <= validation.last:
        raise RestoreError(
            f"validation.last: {validation.last} leaves none of the {corpus.count} images of {data.source} for training"
        )
    return hold_out(corpus, validation.last), validation_pairs(
        corpus, range(corpus.count - validation.last, corpus.count), recipe
    )


def require_readable(corpus, attempts=64):
    """Raise RestoreError unless one of the first images can be decoded: before the run, and not in a worker."""
    first = None
    for index in range(min(attempts, corpus.count or attempts)):
        try:
            corpus.read(index)
            return
        except ImageError as error:
            first = first or error
    raise RestoreError(f"{corpus.source}: none of its first images can be read; {first}")


def data_device(recipe):
    """Where samples are made: on the GPU of this process if the recipe wants that and there is one."""
    if not recipe.data.on_device or recipe.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    from accelerate import PartialState
    return PartialState().device


def latent_channels(model):
    """Channels of what ``model.latent`` gives."""
    seen = []
    handle = model.latent.register_forward_hook(lambda module, inputs, output: seen.append(output.shape[1]))
    with torch.no_grad():
        cheapest = min(model.depths.values(), key=sum, default=None)
        model(torch.zeros(1, 3, model.multiple, model.multiple), parse_depth(cheapest))
    handle.remove()
    return seen[-1]


class Head(nn.Sequential):
    """Degradation classifier on the encoder's latent: mean over the pixels, then one hidden layer."""

    def __init__(self, channels, classes):
        super().__init__(
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.LayerNorm(channels),
            nn.Linear(channels, channels),
            nn.GELU(),
            nn.Linear(channels, classes),
        )
