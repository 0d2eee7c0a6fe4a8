"""Muon: the orthogonalised update against a singular value decomposition, the rest against torch's AdamW."""

import pytest
import torch
from torch import nn

from restore.muon import Muon, is_matrix, orthogonalised


@pytest.mark.parametrize("shape", [(24, 40), (40, 24), (32, 32)])
def test_orthogonalised_keeps_singular_vectors_and_levels_their_values(shape):
    u, s, v = torch.linalg.svd(torch.randn(shape, generator=torch.Generator().manual_seed(1)), full_matrices=False)
    matrix = u @ torch.diag(torch.linspace(0.2, 1, len(s))) @ v
    values = u.t() @ orthogonalised(matrix) @ v.t()
    assert torch.allclose(values, torch.diag(values.diag()), atol=1e-4)        # the same singular vectors
    assert 0.6 < values.diag().min() and values.diag().max() < 1.3


def test_an_update_has_the_size_of_adamws():
    weight = nn.Parameter(torch.zeros(64, 32, 3, 3))
    weight.grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    Muon([weight], lr=1e-2).step()
    assert weight.detach().square().mean().sqrt().item() == pytest.approx(0.2e-2, rel=0.3)       # 0.2 lr, arXiv 2502.16982


def test_what_is_no_matrix_takes_adamws_steps():
    def trained(make):
        bias, kernel = nn.Parameter(torch.ones(7)), nn.Parameter(torch.ones(20, 1, 3, 3))
        optimizer = make([{"params": [kernel], "weight_decay": 0.1}, {"params": [bias], "weight_decay": 0.0}])
        for step in range(5):
            generator = torch.Generator().manual_seed(step)
            bias.grad, kernel.grad = (torch.randn(p.shape, generator=generator) for p in (bias, kernel))
            optimizer.step()
        return bias.detach(), kernel.detach()
    ours = trained(lambda groups: Muon(groups, lr=1e-2, betas=(0.9, 0.99)))
    theirs = trained(lambda groups: torch.optim.AdamW(groups, lr=1e-2, betas=(0.9, 0.99)))
    for a, b in zip(ours, theirs):
        assert torch.allclose(a, b, atol=1e-6)


def test_which_weights_are_matrices():
    assert is_matrix(torch.zeros(64, 32, 3, 3)) and is_matrix(torch.zeros(16, 16))
    assert not any(map(is_matrix, (torch.zeros(64), torch.zeros(64, 1, 3, 3), torch.zeros(32, 12, 3, 3), torch.zeros(2, 64))))
