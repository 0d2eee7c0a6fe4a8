"""The networks, and a plain dict from name to builder."""

import difflib
import functools

from ..errors import RestoreError
from .anydepth import AnyDepth
from .dynet import DyNet
from .gunet import BLOCKS, GUNet
from .promptir import PromptIR
from .untied import Untied

MODELS = {
    "anydepth": AnyDepth,
    "anydepth_untied": Untied,
    "dynet": DyNet,
    "promptir": PromptIR,
    **{name: functools.partial(GUNet, name=name, blocks=blocks) for name, blocks in BLOCKS.items()},
}


def create_model(name, **config):
    """The network ``name`` with fresh weights, in training mode; ``config`` are its constructor's arguments.

    Raises :class:`RestoreError` for an unknown name or argument, naming what there is.
    """
    if name not in MODELS:
        near = difflib.get_close_matches(name, MODELS, 1)
        raise RestoreError(f"no network is called {name!r}" + (f"; did you mean {near[0]!r}?" if near else "")
                           + f" There are {', '.join(MODELS)}.")
    try:
        return MODELS[name](**config)
    except TypeError as error:
        raise RestoreError(f"network {name}: {error}") from error
