"""Convolutions together with what follows them, in one pass over the image where this PyTorch can, else in two.

oneDNN applies an activation, a sum or a product to what a convolution has just computed, while it is in the cache. The
operators are those that ``torch.compile`` emits and no public function reaches, so they are tried before they are trusted.
"""

import functools

import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import _get_current_dispatch_mode

from .models.anydepth import SLOPE

# name -> the function, and its scalars and its variant as oneDNN is told them
_ACTIVATIONS = {"none": (lambda x: x, [], ""), "gelu": (F.gelu, [], "none"), "sigmoid": (torch.sigmoid, [], ""),
                "leaky_relu": (lambda x: F.leaky_relu(x, SLOPE), [SLOPE], "")}
_OPERATIONS = {"add": torch.add, "mul": torch.mul}


def convolve(x, weight, bias=None, padding=(0, 0), groups=1, then="none"):
    """``then`` (``"none"``, ``"gelu"``, ``"sigmoid"``, or ``"leaky_relu"`` of AnyDepth's slope) of the convolution of ``x`` (n, c, h, w)."""
    step = _one_pass if _in_one_pass(x) else _two_passes
    return step(x, weight, bias, padding, groups, then)


def convolve_with(x, other, operation, weight, bias=None, padding=(0, 0), groups=1):
    """The convolution of ``x`` (n, c, h, w), to which ``other``, of the result's shape, is added or multiplied:
    ``operation`` is ``"add"`` or ``"mul"``."""
    step = _one_pass_with if _in_one_pass(x) else _two_passes_with
    return step(x, other, operation, weight, bias, padding, groups)


def _one_pass(x, weight, bias, padding, groups, then):
    _, scalars, variant = _ACTIVATIONS[then]
    return torch.ops.mkldnn._convolution_pointwise(x, weight, bias, padding, (1, 1), (1, 1), groups, then, scalars, variant)


def _one_pass_with(x, other, operation, weight, bias, padding, groups):
    return torch.ops.mkldnn._convolution_pointwise.binary(x, other, weight, bias, padding, (1, 1), (1, 1), groups, operation,
                                                          None, None, [], None)


def _two_passes(x, weight, bias, padding, groups, then):
    return _ACTIVATIONS[then][0](F.conv2d(x, weight, bias, padding=padding, groups=groups))


def _two_passes_with(x, other, operation, weight, bias, padding, groups):
    return _OPERATIONS[operation](F.conv2d(x, weight, bias, padding=padding, groups=groups), other)


def _in_one_pass(x):
    """Not elsewhere than on a CPU, nor where a dispatch mode counts costs: those of both passes are the most it can be."""
    return x.device.type == "cpu" and _get_current_dispatch_mode() is None and _trusted(x.dtype)


@functools.cache
def _trusted(dtype):
    """Whether the operators exist for such tensors and compute what their names say."""
    generator = torch.Generator().manual_seed(0)
    x, other, weight, bias = (torch.randn(size, generator=generator).to(dtype) for size in ((1, 16, 5, 6), (1, 16, 5, 6), (16, 1, 3, 3), 16))
    x, other = (t.contiguous(memory_format=torch.channels_last) for t in (x, other))
    tolerance = 1e-4 if dtype == torch.float32 else 0.1
    with torch.no_grad():
        try:
            return all(torch.allclose(_one_pass(x, weight, bias, (1, 1), 16, name), _two_passes(x, weight, bias, (1, 1), 16, name),
                                      atol=tolerance) for name in _ACTIVATIONS) and \
                all(torch.allclose(_one_pass_with(x, other, name, weight, bias, (1, 1), 16),
                                   _two_passes_with(x, other, name, weight, bias, (1, 1), 16), atol=tolerance) for name in _OPERATIONS)
        except (AttributeError, RuntimeError, TypeError):        # no oneDNN, no kernels for this type, or another signature
            return False
