"""The GPU path: what it keeps in float32 and when it records, on any machine; the recording itself needs CUDA."""

import pytest
import torch
from test_models import TINY, tiny

from restore import Restorer, gpu


@pytest.fixture(autouse=True)
def no_grad():
    with torch.no_grad():
        yield


def relative_error(model, quick, x, depth=None):
    plain = model(x, depth)
    return ((quick(x, depth) - plain).abs().max() / (plain - x).abs().max()).item()


@pytest.fixture
def recordings(monkeypatch):
    """Instead of CUDA graphs: a list of what was to be recorded, whose replay adds one."""
    made = []
    monkeypatch.setattr(gpu, "record", lambda network, x, depth: made.append((tuple(x.shape), depth)) or (lambda x: x + 1))
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: made.append("freed"))
    return made


def test_records_what_comes_twice_in_a_row(recordings):
    network = gpu.Graphed(None, lambda x, depth: x)
    a, b = torch.zeros(1, 3, 8, 8), torch.zeros(1, 3, 8, 16)
    results = [network(*call).max().item() for call in
               ((a, "small"), (a, "small"), (a, "small"), (a, "large"), (b, "large"), (b, "large"), (a, "small"))]
    assert results == [0, 1, 1, 0, 0, 1, 0]
    assert recordings == [((1, 3, 8, 8), "small"), "freed", ((1, 3, 8, 16), "large"), "freed"]


def test_large_images_are_not_recorded(recordings):
    network = gpu.Graphed(None, lambda x, depth: x)
    large = torch.zeros(1, 1, 1, 1).expand(1, 3, 1024, 1025)
    assert [network(large).max().item() for _ in range(3)] == [0, 0, 0] and not recordings


@pytest.mark.parametrize("name", TINY)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32], ids=str)
def test_precisions(name, dtype):
    model = tiny(name)
    network = gpu.on_gpu(model, dtype)
    x = torch.rand(1, 3, 24, 40, generator=torch.Generator().manual_seed(1))
    out = network(x)
    assert out.dtype == torch.float32 and not torch.equal(out, out.to(torch.bfloat16).float())
    assert relative_error(model, network.plain, x) < {torch.float32: 1e-5, torch.float16: 0.02, torch.bfloat16: 0.1}[dtype]
    assert all(p.dtype == torch.float32 for p in model.parameters())


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["fp32", "bf16", "fp16"])
@pytest.mark.parametrize("name", TINY)
def test_replayed_equals_run(name, precision):
    model = tiny(name)
    restorer = Restorer(model, device="cuda", precision=precision)
    images = [torch.rand(3, 45, 60, generator=torch.Generator().manual_seed(seed)) for seed in range(3)]
    outs = [restorer.restore(image) for image in images]                      # run, recorded, replayed
    assert restorer.network.replay is not None
    for image, out in zip(images, outs):
        expected = restorer.network.plain(image.cuda()[None], restorer.depth)[0].cpu().clamp(0, 1)
        torch.testing.assert_close(out, expected, atol=1e-3, rtol=0)


@pytest.mark.gpu
def test_sizes_in_turn_and_compiled():
    model = tiny("dynet")
    restorer = Restorer(model, device="cuda", compiled=True)
    for height, width in ((24, 24), (24, 24), (40, 24), (24, 24), (40, 24), (40, 24)):
        image = torch.rand(3, height, width)
        expected = model(image.cuda()[None])[0].cpu().clamp(0, 1)
        torch.testing.assert_close(restorer.restore(image), expected, atol=1e-3, rtol=0)
