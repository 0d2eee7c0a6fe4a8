"""Exponential moving average of a network's weights (EMA): what a run hands over in the end.

timm's ModelEmaV3 keeps a second module; under FSDP that would be a second whole network in each process. This one keeps
tensors shaped and sharded as the parameters are.
"""

import contextlib

import torch


class Average:
    """Averaged weights of ``network``; BatchNorm statistics are averages already and are left alone."""

    def __init__(self, network, decay):
        self.decay = decay
        self.weights = {name: p.detach().clone() for name, p in network.named_parameters()}

    @torch.no_grad()
    def update(self, network, step):
        """Move towards the weights after optimizer step ``step`` (from 1); early steps count more."""
        decay = min(self.decay, (1 + step) / (10 + step))
        theirs = [_local(p.detach()) for _, p in network.named_parameters()]
        torch._foreach_lerp_([_local(w) for w in self.weights.values()], theirs, 1 - decay)

    @contextlib.contextmanager
    def applied(self, network):
        """Within the block ``network`` has the averaged weights."""
        parameters = [p for _, p in network.named_parameters()]
        with torch.no_grad():
            own = [p.detach().clone() for p in parameters]
            for p, w in zip(parameters, self.weights.values()):
                p.copy_(w)
        try:
            yield
        finally:
            with torch.no_grad():
                for p, w in zip(parameters, own):
                    p.copy_(w)

    def state(self):
        """The averages by name, whole and on the CPU; every process must call it."""
        return {name: _whole(w).cpu() for name, w in self.weights.items()}

    def load(self, tensors):
        """Take up what :meth:`state` gave."""
        from torch.distributed.tensor import DTensor, distribute_tensor
        for name, w in self.weights.items():
            value = tensors[name].to(w.device)
            w.copy_(distribute_tensor(value, w.device_mesh, w.placements) if isinstance(w, DTensor) else value)


def _local(tensor):
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _whole(tensor):
    return tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor
