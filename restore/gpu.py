"""The fast way to run a network on a GPU: the same modules and weights in half precision, their kernels recorded.

What binds a GPU here is memory traffic and, on small images, the time that Python takes to launch hundreds of small
kernels. bfloat16 weights and activations halve the one; a CUDA graph, recorded when a size comes for the second time,
does away with the other.
"""

import copy
import threading

import torch
from torch import nn

from .fast import halve
from .models.base import channels_last
from .models.gunet import GUNet, fold_batchnorm

RECORDED = 1 << 20                           # pixels: a larger image keeps the GPU busy by itself, and much memory


def on_gpu(model, dtype=torch.float32, compiled=False):
    """A network for inference on CUDA with the call of ``model``; a snapshot of its weights in other precisions than fp32.

    ``dtype``: ``torch.bfloat16`` for what lies between the first and the last convolution, which stay float32 as the global
    residual does; ``torch.float16`` through autocast, because its range is too small for the normalisation of attention.
    ``compiled``: fuse kernels with ``torch.compile``: faster after minutes of compiling for each size. Give float32 images.
    """
    network = fold_batchnorm(model) if isinstance(model, GUNet) else model
    if dtype == torch.bfloat16:
        network = halve(copy.deepcopy(network).eval(), dtype)
    elif dtype != torch.float32:
        network = Autocast(network, dtype)
    network = network.to(memory_format=torch.channels_last)
    return Graphed(network, torch.compile(network, dynamic=False) if compiled else network)


class Autocast(nn.Module):
    """``network`` under autocast in ``dtype``, without the cache that a recorded graph must not see."""

    def __init__(self, network, dtype):
        super().__init__()
        self.network, self.dtype = network, dtype

    def forward(self, x, depth=None):
        with torch.autocast("cuda" if x.is_meta else x.device.type, self.dtype, cache_enabled=False):
            return self.network(x, depth).float()


class Graphed(nn.Module):
    """Runs ``network``, which is ``plain`` or its compiled form; on the size and depth of the call before, from a recording.

    One recording is kept, that of the last size, since it holds the memory of all activations; images of more than
    ``RECORDED`` pixels are never recorded.
    """

    def __init__(self, plain, network):
        super().__init__()
        self.plain, self.network, self.last, self.replay = plain, network, None, None

    def forward(self, x, depth=None):
        key = tuple(x.shape), depth
        if key != self.last:
            if self.replay is not None:
                self.replay = None
                torch.cuda.empty_cache()
            self.last = key
        elif x.shape[2] * x.shape[3] <= RECORDED:
            self.replay = self.replay or record(self.network, x, depth)
            return self.replay(x)
        return self.network(x, depth)


def record(network, x, depth):
    """A function that does with another input of the same shape what ``network(x, depth)`` does, as one CUDA graph."""
    given, lock = channels_last(x.clone()), threading.Lock()
    beside = torch.cuda.Stream()
    beside.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(beside):          # what is set up at the first call must not be recorded
        network(given, depth)
    torch.cuda.current_stream().wait_stream(beside)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = network(given, depth)

    def replay(x):
        with lock:                           # one input and one output for all callers
            given.copy_(x)
            graph.replay()
            return out.clone()

    return replay
