"""The Restorer: the same kind out as in, whole where it fits, tiles that add up, memory that runs out."""

import itertools
import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from torch import nn

from restore import footprint
from restore.errors import RestoreError
from restore.footprint import available_memory, measure, parse_memory
from restore.models.base import RestorationModel
from restore.restorer import Restorer, choose_device
from restore.tiling import run_tiled, spans, weights


class Toy(RestorationModel):
    """One 5x5 convolution, and a count of what it was given. ``limit``: pixels above which memory runs out."""

    name, multiple, minimum = "toy", 8, 8

    def __init__(self, limit=None, error=None, identity=False):
        super().__init__({})
        torch.manual_seed(0)
        self.conv = nn.Conv2d(3, 3, 5, padding=2, padding_mode="replicate")
        with torch.no_grad():
            self.conv.weight.copy_(torch.rand_like(self.conv.weight) / 80)
            self.conv.bias.zero_()
        self.limit, self.error, self.identity, self.seen = limit, error, identity, []

    def footprint(self):
        return 0.0, 108.0                    # bytes, and bytes per pixel

    def restore(self, x, repeats):
        self.seen.append(tuple(x.shape[2:]))
        if self.limit and x.shape[2] * x.shape[3] > self.limit:
            raise self.error
        return x if self.identity else self.conv(x)


def picture(height, width, seed=0):
    return torch.rand(3, height, width, generator=torch.Generator().manual_seed(seed))


def tiny_budget(monkeypatch, pixels):
    """Make every Restorer think that so many pixels fit."""
    monkeypatch.setattr(Restorer, "_affordable", lambda *_: pixels)


# ---------------------------------------------------------------- tiling

@pytest.mark.parametrize("length", [1, 7, 64, 65, 100, 333, 1000])
@pytest.mark.parametrize("tile", [8, 40, 64, 200])
@pytest.mark.parametrize("overlap", [0, 16, 64])
@pytest.mark.parametrize("multiple", [1, 8])
def test_spans_cover_on_the_grid_with_positive_weights_that_add_up(length, tile, overlap, multiple):
    cuts = spans(length, tile, overlap, multiple)
    assert (cuts[0][0], cuts[-1][1]) == (0, length)
    assert all(start % multiple == 0 and stop - start <= max(tile, multiple) for start, stop in cuts)
    assert all(stop - start == cuts[0][1] for start, stop in cuts[:-1])
    shared = [before[1] - after[0] for before, after in itertools.pairwise(cuts)]
    assert all(s >= min(overlap, tile // 2) // multiple * multiple for s in shared)
    total = torch.zeros(length)
    for start, vector in weights(cuts):
        assert (vector > 0).all()
        total[start:start + len(vector)] += vector
    torch.testing.assert_close(total, torch.ones(length))


@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (50, 300), (97, 131), (200, 8)])
@pytest.mark.parametrize("tile", [(32, 48), (16, 16), (64, 24)])
def test_identity_in_tiles_is_the_image(height, width, tile):
    image, done = picture(height, width), []
    out = run_tiled(lambda piece, report: report(piece[0].numel()) or piece, image, tile, 16, 8, done.append)
    torch.testing.assert_close(out, image)
    assert sum(done) == pytest.approx(height * width)


def test_a_local_network_in_tiles_equals_the_whole(monkeypatch):
    image = picture(203, 331)
    whole = Restorer(Toy())(image)
    tiny_budget(monkeypatch, 96 * 96)
    tiled = Restorer(Toy(), overlap=48)
    assert tiled.tile(203, 331) == (96, 96)
    assert tiled.count_tiles(203, 331) == 4 * 6              # 96 + 3 * 48 reach 203 - 7, 96 + 5 * 48 reach 331 - 1, on a grid of 8
    torch.testing.assert_close(tiled(image), whole, atol=1e-6, rtol=0)
    assert tiled.network.seen == [(96, 96)] * 24


def test_a_panorama_is_cut_across_its_length_alone(monkeypatch):
    tiny_budget(monkeypatch, 10_000)
    restorer, image = Restorer(Toy()), picture(20, 4000)
    with torch.no_grad():
        torch.testing.assert_close(restorer(image), Toy()(image[None])[0].clamp(0, 1), atol=1e-6, rtol=0)
    assert {h for h, _ in restorer.network.seen} == {24}
    torch.testing.assert_close(Restorer(Toy(identity=True))(picture(4000, 3)), picture(4000, 3))


# ---------------------------------------------------------------- memory

ERRORS = [torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"), MemoryError(),
          RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: not enough memory: you tried to allocate"),
          RuntimeError("MPS backend out of memory (MPS allocated: 1 GB)")]


@pytest.mark.parametrize("error", ERRORS, ids=lambda e: type(e).__name__)
def test_a_tile_that_runs_out_of_memory_is_halved(error):
    image, restorer, done = picture(150, 260), Restorer(Toy(limit=8000, error=error)), []
    out = restorer.restore(image, done.append)
    torch.testing.assert_close(out, Restorer(Toy()).restore(image), atol=1e-6, rtol=0)
    assert sum(done) == pytest.approx(150 * 260)
    failed = [shape for shape in restorer.network.seen if shape[0] * shape[1] > 8000]
    assert 2 <= len(failed) <= 4             # once for each halving, and not again for every tile


def test_what_was_learnt_holds_for_the_next_image():
    restorer = Restorer(Toy(limit=8000, error=MemoryError()))
    restorer(picture(150, 260))
    restorer.network.seen.clear()
    restorer(picture(150, 260))
    assert max(h * w for h, w in restorer.network.seen) <= 8000


def test_memory_that_is_never_enough_ends_in_words():
    with pytest.raises(RestoreError, match="out of memory"):
        Restorer(Toy(limit=1, error=MemoryError()))(picture(300, 300))
    with pytest.raises(RestoreError, match="out of memory"):
        Restorer(Toy(limit=1, error=MemoryError()))(picture(1, 3))


def test_other_errors_are_not_taken_for_memory():
    with pytest.raises(RuntimeError, match="sizes of tensors"):
        Restorer(Toy(limit=1, error=RuntimeError("The sizes of tensors must match")))(picture(30, 30))


def test_the_budget_decides():
    toy = Toy()
    for megabytes, tiles in ((3000, 1), (1000, None)):
        count = Restorer(toy, memory=f"{megabytes}MB").count_tiles(2000, 1900)
        assert count == tiles if tiles else count > 1
    assert Restorer(toy, memory="unlimited").count_tiles(60_000, 60_000) == 1
    small, large = (Restorer(toy, memory=m).tile(6000, 4000) for m in ("2GB", "3GB"))
    assert small[0] * small[1] < large[0] * large[1]
    assert Restorer(toy, memory="1MB").tile(128, 128) == (128, 128)
    assert Restorer(toy, memory="1MB").count_tiles(3000, 3000) > 1


def test_measure_counts_what_lives():
    class Known(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight, self.plain = nn.Parameter(torch.ones(3, 1, 1)), (torch.ones(3, 1, 1),)

        def forward(self, x, depth):
            y = x * self.weight              # 12 bytes a pixel
            del x
            y = y + self.plain[0]            # 24 for a moment, then 12
            kept = y[:, :1].view(-1)         # a view: nothing
            wide = torch.cat([y] * 4, 1)     # 12 + 48
            out = wide.sum(1, keepdim=True)  # 12 + 48 + 4
            return out + kept.view_as(out)   # 12 + 48 + 4 + 4

    fixed, slope = measure(Known(), None, 32, 64)
    assert (fixed, slope) == (0, 68)


@pytest.mark.parametrize("quick", [False, True])
@pytest.mark.parametrize(("name", "config"), [
    ("dynet", {"width": 8, "heads": (1, 2, 2, 4), "prompt_channels": (8, 8, 8), "prompt_sizes": (8, 4, 2)}),
    ("promptir", {"width": 8, "heads": (1, 2, 2, 4), "blocks": (1, 1, 1, 1), "prompt_channels": (8, 8, 8), "prompt_sizes": (8, 4, 2)}),
    ("anydepth", {"width": (8, 8, 16, 16)}), ("gunet_t", {})])
def test_what_is_not_computed_is_counted_as_if_it_were(name, config, quick, monkeypatch):
    from restore.fast import fast
    from restore.models import create_model
    model = create_model(name, **config).eval()
    network, depth = fast(model) if quick else model, model.repeats(None) or None
    counted = measure(network, depth, 64, 128)
    monkeypatch.setattr(footprint, "_STAND_INS", {})                      # every operator computes
    assert counted == measure(network, depth, 64, 128)
    assert counted[1] > 24


def test_counting_memory_does_not_import_the_compiler():
    code = ("import sys; from restore.models import MODELS, create_model; from restore.fast import fast; from restore.footprint import measure\n"
            "for name in ('dynet', 'anydepth', 'gunet_t'):\n"
            "    model = create_model(name).eval()\n"
            "    measure(model, model.repeats(None) or None, 16, 32); measure(fast(model), model.repeats(None) or None, 16, 32)\n"
            "assert not {'sympy', 'torch._dynamo'} & set(sys.modules)")
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize(("text", "value"), [("2GB", 2e9), ("512 MiB", 2**29), ("1.5gb", 1.5e9), (1000, 1000), ("100KB", 1e5),
                                             ("unlimited", float("inf")), (float("inf"), float("inf"))])
def test_parse_memory(text, value):
    assert parse_memory(text) == value


@pytest.mark.parametrize("text", ["", "GB", "-1GB", "2 bananas", "0"])
def test_parse_memory_refuses(text):
    with pytest.raises(RestoreError, match="memory"):
        parse_memory(text)


def test_available_memory_is_plausible():
    assert 1e6 < available_memory() < 1e14


# ---------------------------------------------------------------- kinds, sizes, precision, devices

@pytest.mark.parametrize(("height", "width"), [(1, 1), (1, 9), (3, 5), (8, 8), (31, 17)])
def test_any_size(height, width):
    image = picture(height, width)
    out = Restorer(Toy())(image)
    assert out.shape == image.shape
    assert 0 <= out.min() <= out.max() <= 1


def test_identity_gives_back_every_kind(tmp_path):
    restorer = Restorer(Toy(identity=True))
    generator = np.random.default_rng(0)
    for shape in ((9, 11), (9, 11, 1), (9, 11, 3), (9, 11, 4)):
        for dtype in (np.uint8, np.uint16, np.float32, np.float64):
            array = generator.random(shape)
            array = (array * np.iinfo(dtype).max).astype(dtype) if np.dtype(dtype).kind == "u" else array.astype(dtype)
            before = array.copy()
            out = restorer(array)
            assert (out.dtype, out.shape) == (array.dtype, array.shape)
            np.testing.assert_allclose(out, array, atol=1e-7)
            np.testing.assert_array_equal(array, before)
    for mode in ("L", "LA", "RGB", "RGBA", "1", "I;16", "F"):
        image = Pillow.fromarray(generator.integers(0, 256, (9, 11, 4), np.uint8)).convert(
            "L" if mode in ("I;16", "F") else mode)
        if mode in ("I;16", "F"):
            image = Pillow.fromarray(np.asarray(image).astype(np.uint16) * 200 if mode == "I;16" else
                                     np.asarray(image, np.float32) / 255)
        out = restorer(image)
        assert isinstance(out, Pillow.Image)
        assert out.mode == ("L" if mode == "1" else mode)
        np.testing.assert_allclose(np.asarray(out).astype(float), np.asarray(image.convert("L") if mode == "1" else image))
    Pillow.fromarray(generator.integers(0, 256, (9, 11, 4), np.uint8)).save(tmp_path / "a.png")
    restorer(tmp_path / "a.png").save(tmp_path / "b.png")
    restorer(str(tmp_path / "a.png")).save(tmp_path / "c.png")
    for name in ("b.png", "c.png"):
        np.testing.assert_array_equal(np.asarray(Pillow.open(tmp_path / name)), np.asarray(Pillow.open(tmp_path / "a.png")))
    half = picture(5, 6).half()
    assert restorer(half).dtype == torch.float16


def test_the_input_is_untouched_and_the_output_clamped():
    image = picture(40, 50)
    before = image.clone()
    toy = Toy()
    with torch.no_grad():
        toy.conv.bias += 0.7
    assert Restorer(toy)(image).max() == 1
    assert torch.equal(image, before)
    identity = Restorer(Toy(identity=True))
    over = picture(9, 9) * 3 - 1
    kept = over.clone()
    identity(over)
    assert torch.equal(over, kept)


@pytest.mark.parametrize("bad", [torch.rand(4, 5, 6), torch.rand(5, 6), torch.rand(1, 3, 5, 6), torch.rand(3, 0, 6),
                                 torch.full((3, 4, 4), float("nan")), torch.zeros(3, 4, 4, dtype=torch.uint8), "missing.png",
                                 np.zeros((4, 4, 2), np.uint8), np.zeros((4, 4, 3), np.int64), np.zeros((0, 4, 3), np.uint8),
                                 np.full((4, 4, 3), np.inf, np.float32), Pillow.new("HSV", (4, 4)), None, 7])
def test_what_is_no_image_is_refused(bad):
    with pytest.raises(RestoreError):
        Restorer(Toy())(bad)


def test_wrong_options_are_refused():
    for options in ({"precision": "int8"}, {"device": "abacus"}, {"device": "cuda:77"}, {"memory": "much"}, {"overlap": -1},
                    {"depth": "small"}):
        with pytest.raises(RestoreError):
            Restorer(Toy(), **options)


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_reduced_precision_stays_close_and_the_residual_exact(precision):
    image = picture(40, 50)
    full, reduced = Restorer(Toy())(image), Restorer(Toy(), precision=precision)(image)
    assert reduced.dtype == torch.float32
    assert 0 < (full - reduced).abs().max() < 0.02
    assert torch.equal(Restorer(Toy(identity=True), precision=precision)(image), image)


def test_values_that_are_not_numbers_are_reported():
    toy = Toy()
    with torch.no_grad():
        toy.conv.weight[:] = 1e9
    with pytest.raises(RestoreError, match="fp16"):
        Restorer(toy, precision="fp16")(picture(20, 20))


def test_choose_device():
    assert choose_device("cpu").type == "cpu"
    assert choose_device("auto").type == ("cuda" if torch.cuda.is_available() else
                                          "mps" if torch.backends.mps.is_available() else "cpu")


def test_a_real_network_at_both_depths_and_odd_sizes(monkeypatch):
    from restore.models import create_model
    torch.manual_seed(1)
    model = create_model("dynet", width=8, heads=(1, 2, 2, 4))
    image, results = picture(45, 67), {}
    for depth in ("small", "large"):
        restorer = Restorer(model, depth=depth)
        results[depth] = restorer(image)
        with torch.no_grad():
            torch.testing.assert_close(results[depth], model(image[None], depth)[0].clamp(0, 1), atol=1e-5, rtol=0)
    assert not torch.equal(results["small"], results["large"])
    fixed, slope = measure(model, model.repeats("small"), 64, 128)
    assert 100 < slope < 6000 * 8 / 48 * 3
    assert fixed < 1e6


@pytest.mark.slow
def test_24_megapixels_under_two_gigabytes(tmp_path):
    """In a process of its own, with a network that really takes what it says: 400 bytes a pixel."""
    code = """
import json, torch
from pathlib import Path
from restore.models.base import RestorationModel
from restore.restorer import Restorer
class Wide(RestorationModel):
    name, multiple = "wide", 8
    def restore(self, x, repeats):
        return torch.cat([x] * 32, 1).view(1, 32, 3, *x.shape[2:]).mean(1)
restorer = Restorer(Wide({}))
image = torch.rand(3, 4000, 6000)
out = restorer(image)
peak = next(int(l.split()[1]) for l in Path("/proc/self/status").read_text().splitlines() if l.startswith("VmHWM"))
worst = max(float((a - b).abs().max()) for a, b in zip(image[0], out[0]))
print(json.dumps({"peak": peak * 1024, "tiles": restorer.count_tiles(4000, 6000), "worst": worst}))
"""
    if not sys.platform.startswith("linux"):
        pytest.skip("reads the peak from /proc")
    result = json.loads(subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, text=True).stdout)
    assert result["worst"] < 1e-6
    assert result["tiles"] > 1
    assert 1e9 < result["peak"] < 2e9
