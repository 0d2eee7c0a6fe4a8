"""From a recipe to a fine-tuned network: ``run(recipe, out)`` is what ``python -m finetune`` calls, and needs no command line."""

import dataclasses
import os

import torch

from restore import checkpoint
from restore.errors import RestoreError
from restore.models import create_model
from restore.training import train

from .gunet import needs_synchronised_norms, norm_freezer, published_settings
from .mixture import Mixture, data_digest, epoch_length, find_sources, table
from .validation import validation_pairs


def tell_once(text):
    """Print in the first process alone."""
    if os.environ.get("RANK", "0") == "0":
        print(text, flush=True)


def run(recipe, out, resume=False, tell=tell_once):
    """Fine-tune as the :class:`finetune.recipe.Recipe` says; returns the folder ``out/final``.

    What was found is told first, as a table of tasks, sources, images and shares. Raises RestoreError: nothing usable in a task's
    sets, a checkpoint that cannot be trained, or what :func:`restore.training.train` raises.
    """
    return fine_tune(build_model(recipe), find_sources(recipe), recipe, out, resume, tell)


def fine_tune(model, sources, recipe, out, resume=False, tell=tell_once, criterion=None, provenance=None):
    """Train ``model`` on the mixture; ``criterion`` takes the place of ``recipe.loss``, ``provenance`` is told besides the data."""
    tell(table(sources))
    recipe = resolve(recipe, model, sources)
    pairs = validation_pairs(recipe, sources)
    tell(f"{len(pairs)} validation pairs; {recipe.steps} steps of {recipe.batch_size}; learning rate {recipe.lr:g}")
    samples = Mixture(sources, recipe.data.crop, recipe.seed, recipe.data.cache_mb, _data_device(recipe))
    freeze = norm_freezer(recipe.steps, recipe.freeze_norms) if recipe.freeze_norms else None
    facts = [{"task": s.label, "made": not s.paired, "images": s.corpus.count, "share": s.share} for s in sources]
    return train(model, samples, recipe, out, resume=resume, validation=pairs, on_step=freeze, criterion=criterion,
                 provenance={"start": recipe.start, "mixture": facts, "data_sha256": recipe.data.sha256, **(provenance or {})})


def build_model(recipe):
    """The network to train: the checkpoint's, at the recipe's depths if it names any, or one with fresh weights from the seed."""
    wanted = recipe.model
    if not recipe.start and not wanted.name:
        raise RestoreError("start: give a checkpoint to start from (--from CHECKPOINT), or a network to train from scratch (model.name)")
    torch.manual_seed(recipe.seed)
    if not recipe.start:
        try:
            return create_model(wanted.name, **_with_depths(wanted.options, wanted.depths))
        except RestoreError as error:
            raise RestoreError(f"model: {error}") from None
    model = checkpoint.load(recipe.start)
    if wanted.name and wanted.name != model.name:
        raise RestoreError(f"model.name: {wanted.name}, but {recipe.start} holds {model.name}")
    if model.config.get("folded"):
        raise RestoreError(f"{recipe.start}: its batch normalisations are folded for deployment; start from the checkpoint before that")
    if wanted.depths:
        deeper = create_model(model.name, **_with_depths(model.config, wanted.depths))
        deeper.load_state_dict(model.state_dict())
        model = deeper
    return model.train()


def _with_depths(options, depths):
    """Constructor arguments with other depths; the one that costs most becomes the default, unless the old default stays."""
    if not depths:
        return dict(options)
    default = options.get("default_depth", "large")
    default = default if default in depths else max(depths, key=lambda name: sum(depths[name]))
    return {**options, "depths": depths, "default_depth": default}


def resolve(recipe, model, sources):
    """The recipe with everything filled in that depends on the network and on the data: batch, rate, steps, warm-up, norms."""
    batch_size, lr = published_settings(model.name, recipe.batch_size, recipe.lr)
    steps, warmup = recipe.steps, recipe.warmup
    if not steps:
        epoch = epoch_length(recipe, sources)
        steps = max(1, round(recipe.epochs * epoch / batch_size))
        warmup = warmup or int(recipe.warmup_epochs * epoch / batch_size)
    elif recipe.epochs and not warmup:
        warmup = int(steps * recipe.warmup_epochs / recipe.epochs)
    on_gpu = recipe.device != "cpu" and torch.cuda.is_available()            # torch synchronises norms there alone
    synchronised = recipe.sync_batchnorm or (on_gpu and needs_synchronised_norms(model, batch_size))
    return dataclasses.replace(recipe, batch_size=batch_size, lr=lr, steps=steps, warmup=warmup, sync_batchnorm=synchronised,
                               data=dataclasses.replace(recipe.data, sha256=data_digest(sources)))


def _data_device(recipe):
    """Where samples are made: on the GPU of this process if the recipe wants that and there is one."""
    if not recipe.data.on_device or recipe.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    from accelerate import PartialState
    return PartialState().device
