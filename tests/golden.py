"""Made-up weights and inputs by rule, and the outputs that the published networks give for them."""

import json
import zlib
from pathlib import Path

import numpy as np
import torch

REFERENCE = Path(__file__).parent / "reference"
SHAPES = {"a": (1, 3, 64, 64), "b": (2, 3, 96, 72)}
THINNED = {"a": np.s_[..., ::4, ::4], "b": np.s_[..., 1::6, 2::6]}


def golden_state_dict(name):
    """The published state dict of ``dynet``, ``promptir``, ``gunet_t`` or ``gunet_b`` with weights made by rule."""
    shapes = json.loads((REFERENCE / "keys.json").read_text())[name]
    return {key: torch.from_numpy(np.asarray(golden_tensor(key, shape))) for key, shape in shapes.items()}


def golden_tensor(key, shape):
    """A tensor that depends on its key and shape alone, scaled so that activations stay within bounds."""
    if key.endswith("num_batches_tracked"):
        return np.zeros(shape, np.int64)
    rng = np.random.RandomState(zlib.crc32(key.encode("ascii")))
    g = rng.standard_normal(tuple(shape))
    u = g / np.sqrt(max(1, int(np.prod(shape[1:]))))
    rules = [(key.endswith("running_var"), 1 + 0.25 * np.abs(g)), (key.endswith("running_mean"), 0.1 * g),
             (key.endswith("temperature"), 4 + g), (key.endswith("prompt_param"), 0.5 + g),
             (key.endswith(".bias"), 0.1 * g), (len(shape) == 1, 1 + 0.1 * g),
             (key.endswith("linear_layer.weight"), 0.5 * u), (".mlp." in key, 3 * u),
             (key.endswith(".conv.proj.weight"), 0.25 * u), (key.startswith("outconv."), 0.5 * u),
             (key.startswith("output."), 0.1 * u)]
    return next((value for applies, value in rules if applies), u).astype(np.float32)


def golden_case(name, tag):
    """(input in [0, 1], thinned output in [0, 1]) of a case such as ``dynet_s``, ``a``."""
    seed = zlib.crc32(f"{name}/{tag}".encode("ascii"))
    pixels = np.random.RandomState(seed).randint(0, 256, size=SHAPES[tag])
    output = np.load(REFERENCE / f"{name}.npz")[tag]
    if name.startswith("gunet"):                # published on [-1, 1]
        output = (output + 1) / 2
    return torch.from_numpy(pixels.astype(np.float32) / np.float32(255)), torch.from_numpy(output)
