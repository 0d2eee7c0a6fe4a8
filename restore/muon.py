"""Muon: momentum whose update is made orthogonal, for the weights that are matrices; AdamW for the rest.

Method: K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks" (2024), with its coefficients; the size of
an update is matched to AdamW's as in arXiv 2502.16982, so that both take the same learning rate. A convolution counts as
the matrix (output channels, input channels x kernel).
"""

import torch

from .errors import RestoreError

SMALLEST = 16               # channels in and out; the first and the last layer, depthwise kernels and scales have fewer
COEFFICIENTS = (3.4445, -4.7750, 2.0315)


class Muon(torch.optim.Optimizer):
    """``torch.optim.AdamW``'s interface; ``momentum`` is that of the matrices, ``betas`` those of the other weights.

    Raises RestoreError for weights that FSDP has sharded: orthogonalising needs the whole matrix.
    """

    def __init__(self, params, lr=1e-3, momentum=0.95, betas=(0.9, 0.99), eps=1e-8, weight_decay=0.0):
        super().__init__(params, dict(lr=lr, momentum=momentum, betas=betas, eps=eps, weight_decay=weight_decay))
        if any(hasattr(p, "to_local") for group in self.param_groups for p in group["params"]):
            raise RestoreError("optimizer: muon needs whole matrices, and FSDP has cut them up; use adamw")

    @torch.no_grad()
    def step(self, closure=None):
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is not None:
                    p.mul_(1 - group["lr"] * group["weight_decay"])
                    (_orthogonal_step if is_matrix(p) else _adam_step)(p, self.state[p], group)
        return loss


def is_matrix(weight):
    """Whether ``weight`` mixes enough channels into enough others to be orthogonalised."""
    return weight.ndim >= 2 and min(weight.shape[:2]) >= SMALLEST


def orthogonalised(matrix, steps=5):
    """A matrix with the singular vectors of ``matrix`` and singular values near 1 (0.7 to 1.2), by Newton-Schulz."""
    a, b, c = COEFFICIENTS
    tall = matrix.shape[0] > matrix.shape[1]
    x = matrix.t() if tall else matrix
    x = x / (x.norm() + 1e-7)
    for _ in range(steps):
        gram = x @ x.t()
        x = torch.addmm(x, torch.addmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.t() if tall else x


def _orthogonal_step(p, state, group):
    if not state:
        state["momentum"] = torch.zeros_like(p)
    average = state["momentum"].lerp_(p.grad, 1 - group["momentum"])
    ahead = p.grad.lerp(average, group["momentum"]).reshape(len(p), -1)        # Nesterov's
    size = 0.2 * max(ahead.shape) ** 0.5
    p.add_(orthogonalised(ahead).reshape(p.shape), alpha=-group["lr"] * size)


def _adam_step(p, state, group):
    if not state:
        state.update(step=torch.zeros(()), exp_avg=torch.zeros_like(p), exp_avg_sq=torch.zeros_like(p))
    state["step"] += 1
    (first, second), t = group["betas"], float(state["step"])
    mean = state["exp_avg"].lerp_(p.grad, 1 - first)
    square = state["exp_avg_sq"].mul_(second).addcmul_(p.grad, p.grad, value=1 - second)
    p.addcdiv_(mean, (square / (1 - second ** t)).sqrt_().add_(group["eps"]), value=-group["lr"] / (1 - first ** t))
