"""The fast path against the plain forward, for every network, depth, size and strip."""

import pytest
import torch

from restore import fast as fast_module
from restore import fused
from restore.fast import fast
from restore.models import create_model

NETWORKS = {
    "dynet": {"width": 16},
    "promptir": {"width": 16, "blocks": (1, 2, 1, 1), "refinement": 1},
    "gunet_t": {},
    "anydepth": {"width": (8, 12, 16, 20)},
}
SIZES = [(1, 3, 1, 1), (2, 3, 37, 20), (1, 3, 8, 100), (1, 3, 66, 34)]


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


@pytest.fixture(scope="module", params=NETWORKS)
def network(request):
    """A network whose every weight and statistic matters: temperatures, norms and biases away from one and zero."""
    torch.manual_seed(0)
    model = create_model(request.param, **NETWORKS[request.param]).eval()
    with torch.no_grad():
        for tensor in [*model.parameters(), *(b for b in model.buffers() if b.is_floating_point())]:
            tensor.add_(torch.rand_like(tensor) * 0.3 * tensor.abs().mean() + 0.01)
    return model


def relative_error(model, quick, x, depth=None):
    plain = model(x, depth)
    return ((quick(x, depth) - plain).abs().max() / (plain - x).abs().max()).item()


@pytest.mark.parametrize("strip_bytes", [1 << 14, 6 << 20], ids=["many strips", "few strips"])
@pytest.mark.parametrize("size", SIZES, ids=str)
def test_equals_the_plain_forward(network, size, strip_bytes, monkeypatch):
    monkeypatch.setattr(fast_module, "STRIP_BYTES", strip_bytes)
    x = torch.rand(size, generator=torch.Generator().manual_seed(1))
    assert relative_error(network, fast(network), x) < 1e-4


@pytest.mark.parametrize("depth", [(1, 1, 1, 1), "small", "large", (1, 3, 2, 5)], ids=str)
@pytest.mark.parametrize("name", ["dynet", "anydepth"])
def test_every_depth(name, depth):
    model = create_model(name, **NETWORKS[name]).eval()
    if name == "anydepth":
        for stage in (model.encoder1, model.latent):         # they begin at zero
            stage.scale.normal_()
    assert relative_error(model, fast(model), torch.rand(1, 3, 40, 24), depth) < 1e-4


def test_bfloat16_keeps_ends_and_residual_in_float32(network):
    x = torch.rand(1, 3, 40, 48, generator=torch.Generator().manual_seed(1))
    quick = fast(network, torch.bfloat16)
    out = quick(x)
    assert out.dtype == torch.float32 and relative_error(network, quick, x) < 0.05
    bf16_grid = out.bfloat16().float()
    assert not torch.equal(out, bf16_grid)                     # a bfloat16 result would lie on this grid


def test_leaves_the_model_as_it_was(network):
    before = {key: value.clone() for key, value in network.state_dict().items()}
    kinds = [type(module) for module in network.modules()]
    for dtype in (torch.float32, torch.bfloat16):
        fast(network, dtype)
    assert [type(module) for module in network.modules()] == kinds
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())
    assert all(p.requires_grad and p.dtype == torch.float32 for p in network.parameters())


def test_unpacked_weights_are_shared():
    model = create_model("dynet", width=16).eval()
    quick = fast(model)
    assert quick.down1.conv.weight is model.down1.conv.weight


def test_network_without_known_blocks_is_returned_as_it_is():
    model = torch.nn.Conv2d(3, 3, 1)
    assert fast(model) is model


def test_without_the_fused_operators(network, monkeypatch):
    monkeypatch.setattr(fused, "_trusted", lambda dtype: False)
    assert relative_error(network, fast(network), torch.rand(1, 3, 24, 33)) < 1e-4


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_any_number_of_threads(network, threads, monkeypatch):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(fast_module, "STRIP_BYTES", 1 << 14)
    assert relative_error(network, fast(network), torch.rand(1, 3, 37, 20)) < 1e-4


def test_operators_of_another_meaning_are_not_trusted(monkeypatch):
    monkeypatch.setattr(fused, "_one_pass_with", lambda x, other, *rest: x)
    fused._trusted.cache_clear()
    try:
        assert not fused._trusted(torch.float32)
    finally:
        fused._trusted.cache_clear()
