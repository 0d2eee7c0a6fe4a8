"""Adaptation: the priors, the sorting of a folder, the placement of adapters, the bounds, and whole small runs."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from finetune import guards, placement, priors
from finetune.__main__ import main as command
from finetune.adapt import Adaptation, Signals, run
from finetune.guards import Guards
from finetune.learner import Learner
from finetune.photos import Photo, as_array, as_tensor, read_photos, reduced, sort_photos
from restore import RestoreError, Restorer, adapter, create_model, load, save
from restore.degradations.haze import scatter
from restore.degradations.rain import Streaks, rain
from restore.files import write_bytes
from restore.metrics import psnr

ROOT = Path(__file__).resolve().parents[1]


def scene(seed, height=96, width=128):
    """A picture with many edges and colours, uint8 (h, w, 3): every small window has something dark."""
    rng = np.random.default_rng(seed)
    image = cv2.resize(rng.integers(40, 230, (6, 8, 3), dtype=np.uint8), (width, height), interpolation=cv2.INTER_CUBIC)
    for _ in range(3 * width):
        top, left = rng.integers(height), rng.integers(width)
        cv2.rectangle(image, (int(left), int(top)), (int(left + rng.integers(2, 9)), int(top + rng.integers(2, 9))),
                      [int(v) for v in rng.integers(0, 90, 3)], -1)
    return image


def hazy(seed, light=0.5, air=(0.8, 0.8, 0.8)):
    """A scene behind even haze, (3, h, w), and the scene."""
    clear = as_tensor(scene(seed))
    return scatter(clear, torch.full(clear.shape[1:], light), air), clear


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), (image if isinstance(image, np.ndarray) else as_array(image))[..., ::-1])


# --- priors


def test_haze_prior_takes_even_haze_away_and_leaves_a_clear_scene():
    image, clear = hazy(0)
    image[:, :12] = 0.8                                           # a strip of sky, which shows the airlight
    clear[:, :12] = 0.8
    air = priors.airlight(image)
    torch.testing.assert_close(air, torch.full((3,), 0.8), atol=0.02, rtol=0)
    restored = priors.less_haze(image, air)
    assert psnr(restored, clear) > psnr(image, clear) + 4
    assert psnr(priors.less_haze(clear, air), clear) > 30
    assert priors.veil_of(image) > 0.2 > priors.veil_of(clear)
    twice = priors.less_haze(restored, air)
    assert (twice - restored).abs().mean() < 0.6 * (restored - image).abs().mean()          # it comes to rest


def test_a_crop_is_treated_as_the_whole():
    image, _ = hazy(1)
    air, radius = priors.airlight(image), priors.window(*image.shape[1:])
    whole, part = priors.less_haze(image, air, radius), priors.less_haze(image[:, 16:80, 16:96], air, radius)
    inner = slice(24, -24)
    torch.testing.assert_close(part[:, inner, inner], whole[:, 16:80, 16:96][:, inner, inner], atol=0.02, rtol=0)


def test_grey_stays_grey_and_brightness_is_the_new_one():
    before = torch.full((3, 4, 4), 0.5)
    after = torch.tensor([0.3, 0.4, 0.6])[:, None, None].expand(3, 4, 4)
    kept = priors.keep_grey(before, after)
    assert float((kept.amax(0) - kept.amin(0)).max()) < 1e-6
    torch.testing.assert_close(priors.luma(kept), priors.luma(after))
    coloured = torch.tensor([0.9, 0.2, 0.1])[:, None, None].expand(3, 4, 4)
    torch.testing.assert_close(priors.keep_grey(coloured, after), after, atol=1e-3, rtol=0)


@pytest.mark.parametrize("angle", [-30, 0, 20])
def test_rain_prior_finds_the_direction_and_takes_streaks_away(angle):
    clear = torch.nn.functional.avg_pool2d(as_tensor(scene(2, 128, 160))[None], 9, 1, 4)[0] * 0.6
    layer = Streaks(angle=angle, length=(30, 50), width=(1.2, 1.6), density=0.08, brightness=(0.1, 0.25))
    rainy = rain(clear, torch.Generator().manual_seed(0), layers=(layer,))
    _, found = priors.streaks(rainy)
    assert abs(found - angle) <= 5
    assert psnr(priors.less_rain(rainy), clear) > psnr(rainy, clear) + 2
    assert psnr(priors.less_rain(clear, angle), clear) > 38


def test_rain_prior_leaves_wide_and_level_things():
    image = torch.full((3, 96, 96), 0.3)
    image[:, 40:42] = 0.5                                         # a level line
    image[:, :, 60:75] = 0.6                                      # a wide post
    assert float(priors.streaks(image, 0)[0][:, 4:-4].max()) < 0.01


def test_line_mean_is_the_mean_over_the_line():
    plane = torch.rand(40, 40, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(priors.line_mean(plane, 0, 9)[20, 17], plane[16:25, 17].mean())
    torch.testing.assert_close(priors.line_mean(plane, 90, 9)[20, 17], plane[20, 13:22].mean())


# --- the folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Six hazy photos, one clear, one at night, one small, two copies, two broken files and a text."""
    root = tmp_path_factory.mktemp("photos")
    for n in range(6):
        write(root / f"hazy{n}.png", hazy(n, light=0.4 + 0.03 * n)[0])
    shutil.copy(root / "hazy0.png", root / "sub_hazy0.png")
    cv2.imwrite(str(root / "zz_hazy1.jpg"), cv2.imread(str(root / "hazy1.png")), [cv2.IMWRITE_JPEG_QUALITY, 90])
    write(root / "clear.png", scene(20))
    write(root / "night.png", (scene(21) * 0.2).astype(np.uint8))
    write(root / "small.png", scene(22, 60, 60))
    write_bytes(root / "broken.jpg", b"\xff\xd8\xff\xe0 no more")
    write_bytes(root / "cut.png", (root / "hazy2.png").read_bytes()[:500])
    write_bytes(root / "notes.txt", "no photo")
    return root


def test_a_mixed_folder_is_sorted_counted_and_named(folder):
    photos = sort_photos(folder, "haze", 128, 0.34)
    assert sorted(p.name for p in photos.train + photos.held) == [f"hazy{n}.png" for n in range(6)]
    assert len(photos.held) == 2 and [p.name for p in photos.clear] == ["clear.png"]
    assert photos.left_out == {"cannot be read": ["broken.jpg", "cut.png"], "night or too dark": ["night.png"],
                               "copies of others": ["sub_hazy0.png (of hazy0.png)", "zz_hazy1.jpg (of hazy1.png)"],
                               "smaller than 96 pixels": ["small.png"]}
    told = str(photos)
    assert "4 photos to adapt to, 2 held out" in told and "2 left out, cannot be read: broken.jpg, cut.png" in told


def test_names_and_order_do_not_matter(folder, tmp_path):
    for n in range(6):
        shutil.copy(folder / f"hazy{n}.png", tmp_path / f"{9 - n}.png")
    first, other = (sort_photos(where, "haze", 128, 0.34) for where in (folder, tmp_path))
    assert [p.digest for p in first.held] == [p.digest for p in other.held]
    assert first.digest != other.digest                           # the clear photo is not there


def test_too_few_photos_are_refused_with_the_reasons(folder, tmp_path):
    for name in ("hazy0.png", "night.png", "broken.jpg"):
        shutil.copy(folder / name, tmp_path / name)
    with pytest.raises(RestoreError, match="(?s)1 photos with haze.*1 cannot be read: broken.jpg.*1 night or too dark: night"):
        sort_photos(tmp_path, "haze", 128, 0.3)


def test_photos_are_reduced(folder):
    photos, _ = read_photos(folder, 64)
    assert all(max(p.pixels.shape[1:]) == 64 for p in photos)
    assert reduced(scene(0), 500).shape == (96, 128, 3)


# --- placement


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 5, bias=False), nn.Conv2d(3, 4, 3, bias=False)


def test_gain_is_what_such_a_change_lowers_the_loss_by():
    torch.manual_seed(0)
    model = Two()
    target = torch.randn(5, 6)

    def loss(weights, sample):
        return ((weights["first.weight"] - sample * target) ** 2).sum() + 0.01 * weights["second.weight"].sum()

    places = {place.name: place for place in placement.measure(model, loss, [0.5, 1.5], rank=2)}
    weight = model.first.weight.detach()
    gradient = 2 * (weight - target).numpy()                      # the mean of the two samples
    left, values, right = np.linalg.svd(gradient)
    place = places["first.weight"]
    norm = np.linalg.norm(values[:2])
    np.testing.assert_allclose(place.gain, 0.01 * norm * weight.norm(), rtol=1e-4)
    assert place.numbers == 2 * (5 + 6) and np.allclose(np.abs(place.start.numpy() @ right[:2].T), np.eye(2), atol=1e-4)
    size = 1e-3 * float(weight.norm())                            # a tenth of one percent, in the direction of these two
    step = torch.from_numpy((left[:, :2] * values[:2]) @ right[:2] / norm).float() * size

    def mean_loss(w):
        return sum(float(loss({"first.weight": w, "second.weight": model.second.weight.detach()}, s)) for s in (0.5, 1.5)) / 2

    assert (mean_loss(weight) - mean_loss(weight - step)) / (0.1 * place.gain) == pytest.approx(1, abs=0.02)
    assert model.first.weight.grad is None


def test_the_budget_is_kept_and_the_best_come_first():
    places = [placement.Place("a", 4.0, 10, None), placement.Place("b", 3.0, 10, None), placement.Place("c", 1.0, 50, None),
              placement.Place("d", 0.1, 10, None)]
    assert [p.name for p in placement.choose(places, 30)] == ["a", "b", "d"]
    assert [p.name for p in placement.choose(places, 1)] == ["a"]


# --- the bounds


def test_neutral_shift_is_the_distance_in_lab():
    skimage = pytest.importorskip("skimage.color")
    first, image = np.full((8, 8, 3), 128, np.uint8), np.full((8, 8, 3), 128, np.uint8)
    image[..., 0], image[..., 2] = 136, 120
    a, b = (skimage.rgb2lab(x)[0, 0, 1:] for x in (first, image))
    assert guards.neutral_shift(first, image) == pytest.approx(np.hypot(*(b - a)), rel=0.05)     # OpenCV's cube root is a table
    first[:4] = (200, 30, 30)                                     # a coloured half does not count
    image[:4] = (30, 30, 200)
    assert guards.neutral_shift(first, image) == pytest.approx(np.hypot(*(b - a)), rel=0.05)


def test_sharpness_for_rain_does_not_see_upright_lines():
    image = np.full((64, 64, 3), 100, np.uint8)
    lined = image.copy()
    lined[:, 30] = 160
    assert guards.sharpness("rain", lined) < 1e-9 < 100 < guards.sharpness("haze", lined)


FINE = {"paired_psnr": 25.0, "clear_psnr": 40.0, "neutral_shift": 0.0, "brightness": 0.0, "clipped": 0.0, "sharpness": 500.0,
        "entropy": 7.0}


@pytest.mark.parametrize("change, word", [
    ({"paired_psnr": 24.89}, "pairs lose 0.11 dB"), ({"clear_psnr": 31.9}, "clear photos keep 31.9"),
    ({"neutral_shift": 3.1}, "neutral areas"), ({"brightness": -10.5}, "lightness"), ({"clipped": 0.03}, "black or white"),
    ({"sharpness": 499}, "sharpness"), ({"entropy": 6.99}, "entropy"),
])
def test_each_bound(change, word):
    assert Guards().broken(FINE, FINE) == []
    broken = Guards().broken({**FINE, **change}, FINE)
    assert len(broken) == 1 and word in broken[0]


def test_a_network_that_never_kept_clear_photos_may_stay_so():
    before = {**FINE, "clear_psnr": 30.0}
    assert Guards().broken({**before, "clear_psnr": 29.6}, before) == []
    assert "less than 29.5" in Guards().broken({**before, "clear_psnr": 29.4}, before)[0]


# --- whole runs


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    torch.manual_seed(0)
    model = create_model("dynet", width=8, refinement=1, prompt_sizes=(8, 8, 4),
                         depths={"small": [1, 1, 1, 1], "large": [1, 1, 1, 2]})
    path = tmp_path_factory.mktemp("net") / "net"
    save(model, path)
    return path


def recipe(checkpoint, folder, **changes):
    """A run of some seconds, its bounds wide: an untrained network has nothing to lose."""
    wide = Guards(paired_loss=100, clear_psnr=0, neutral_shift=50, brightness=100, clipped=1, sharpness=0, entropy=8,
                  improvement=0.01)
    made = Adaptation(start=str(checkpoint), real=str(folder), steps=6, check_every=3, checkpoint_every=2, side=96, crop=32,
                      images=2, lr=0.02, guards=wide, share=0.1, signals=Signals(again=0, made=0, clear=0.1))
    return dataclasses.replace(made, **changes)


def test_clear_photos_hold_the_network_to_what_it_made_of_them(checkpoint, folder):
    """An untrained network errs on them, yet nothing pulls at it until it is changed."""
    photo = Photo("a", as_tensor(scene(3)), "")
    held = Learner(recipe(checkpoint, folder, signals=Signals(prior=0, again=0)), load(checkpoint), [photo], [photo])
    changed = {name: weight * 1.01 for name, weight in held.base.items()}
    assert [float(held.loss(held.base, k, {})) < 1e-6 for k in range(4)] == [True] * 4
    assert all(float(held.loss(changed, k, {})) > 1e-5 for k in range(4))


@pytest.fixture(scope="module")
def finished(checkpoint, folder, tmp_path_factory):
    """``(folder of a finished run, what it told)``."""
    out, told = tmp_path_factory.mktemp("runs") / "first", []
    assert run(recipe(checkpoint, folder), out, tell=told.append) == out / "adapter.safetensors"
    return out, "\n".join(told)


def test_what_a_run_leaves(finished, checkpoint, folder):
    out, told = finished
    assert {"adapter.safetensors", "report.json", "sheet.png", "log.jsonl", "recipe.yaml"} <= {p.name for p in out.iterdir()}
    assert "left out, cannot be read: broken.jpg, cut.png" in told and "layers with" in told and "held out" in told
    assert "2 held-out photos are few" in told
    report = json.loads((out / "report.json").read_text())
    assert report["kept"] and set(report["after"]) == {"1,1,1,1", "1,1,1,2"}
    assert report["after"]["1,1,1,2"]["residue"] < 0.99 * report["before"]["residue"]
    facts = adapter.load(out / "adapter.safetensors").facts
    assert facts["task"] == "haze" and facts["base_name"] == "net" and "fade" in facts["measured"]
    assert cv2.imread(str(out / "sheet.png")).shape[1] > 3 * 96


def test_the_adapter_is_what_was_measured(finished, checkpoint, folder):
    out, _ = finished
    report = json.loads((out / "report.json").read_text())
    photos = sort_photos(folder, "haze", 96, 0.3)
    for depth, figures in report["after"].items():
        restorer = Restorer(load(checkpoint), depth=depth, adapter=out / "adapter.safetensors")
        residue = np.mean([guards.residue("haze", p.pixels, restorer.restore(p.pixels)) for p in photos.held])
        assert residue == pytest.approx(figures["residue"], rel=1e-4)


def test_the_same_run_twice_gives_the_same_bytes(finished, checkpoint, folder, tmp_path):
    out, _ = finished
    run(recipe(checkpoint, folder), tmp_path / "again", tell=lambda text: None)
    assert (tmp_path / "again/adapter.safetensors").read_bytes() == (out / "adapter.safetensors").read_bytes()
    assert (tmp_path / "again/report.json").read_bytes() == (out / "report.json").read_bytes()


def test_killed_and_resumed_gives_the_same_bytes(finished, checkpoint, folder, tmp_path):
    out, _ = finished
    run_dir = tmp_path / "killed"
    code = ("import sys; sys.path.insert(0, 'tests'); from test_adapt import recipe; from finetune.adapt import run; "
            f"run(recipe({str(checkpoint)!r}, {str(folder)!r}), {str(run_dir)!r})")
    process = subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 250
        while not list(run_dir.glob("checkpoints/step-*")) and process.poll() is None and time.monotonic() < deadline:
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert list(run_dir.glob("checkpoints/step-*")) and not (run_dir / "report.json").exists()
    with pytest.raises(RestoreError, match="holds a run already"):
        run(recipe(checkpoint, folder), run_dir)
    with pytest.raises(RestoreError, match="lr was"):
        run(recipe(checkpoint, folder, lr=0.01), run_dir, resume=True)
    run(recipe(checkpoint, folder), run_dir, resume=True, tell=lambda text: None)
    assert (run_dir / "adapter.safetensors").read_bytes() == (out / "adapter.safetensors").read_bytes()
    rows = [json.loads(line) for line in (run_dir / "log.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3, 4, 5, 6]


def test_where_nothing_improves_the_weights_are_kept(checkpoint, folder, tmp_path):
    told = []
    kept = run(recipe(checkpoint, folder, steps=2, check_every=1, lr=1e-6), tmp_path / "r", tell=told.append)
    assert kept is None and not (tmp_path / "r/adapter.safetensors").exists()
    assert "the original weights are kept" in told[-1] and json.loads((tmp_path / "r/report.json").read_text())["kept"] is False


def test_a_broken_bound_keeps_the_weights_and_is_named(checkpoint, folder, tmp_path):
    told = []
    strict = Guards(clear_psnr=100, clear_loss=0, paired_loss=100, improvement=0.01)
    assert run(recipe(checkpoint, folder, steps=3, guards=strict), tmp_path / "r", tell=told.append) is None
    assert "clear photos keep" in (tmp_path / "r/log.jsonl").read_text()


@pytest.mark.parametrize("changes", [{"rank": 0, "lr": 0.005}, {"task": "rain"}], ids=["all weights", "rain"])
def test_other_ways(checkpoint, folder, tmp_path, changes):
    run(recipe(checkpoint, folder, steps=3, **changes), tmp_path / "r", tell=lambda text: None)
    report = json.loads((tmp_path / "r/report.json").read_text())
    assert ("piqe" in report["before"]) == ("task" in changes)
    if report["kept"] and "rank" in changes:
        adapted = adapter.load(tmp_path / "r/adapter.safetensors")
        assert set(adapted.changes) == {name for name, _ in load(checkpoint).named_parameters()}


def test_the_command(checkpoint, folder, tmp_path, capsys):
    out = tmp_path / "r"
    given = ["--clear", str(folder), "--steps", "1", "--crop", "32", "--side", "96", "--images", "1", "-o", str(out)]
    assert command(["adapt", str(checkpoint), "--real", str(folder), *given]) == 0
    assert "4 photos to adapt to, 2 held out" in capsys.readouterr().out
    assert command(["adapt", str(checkpoint), "--real", str(folder), *given]) == 1
    assert "holds a run already" in capsys.readouterr().err
    assert command(["adapt", str(checkpoint), "--real", str(folder), "--task", "snow", "-o", str(out)]) == 1
    assert command(["adapt", str(checkpoint), "--real", str(folder), "--holdout", "2", "-o", str(out)]) == 1
    assert "holdout: 2" in capsys.readouterr().err


def test_clip_direction(tmp_path):
    """With a tiny CLIP of random weights: 0 along the change that the words name, 2 against it, a gradient at the image."""
    open_clip = pytest.importorskip("open_clip")
    from finetune.clip_signal import Direction
    config = {"embed_dim": 16, "vision_cfg": {"image_size": 32, "layers": 1, "width": 16, "patch_size": 8, "head_width": 8},
              "text_cfg": {"context_length": 77, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}}
    write_bytes(tmp_path / "tiny-for-test.json", json.dumps(config))
    open_clip.add_model_config(tmp_path / "tiny-for-test.json")
    torch.manual_seed(0)
    made = open_clip.create_model("tiny-for-test")
    torch.save(made.state_dict(), tmp_path / "weights.pt")
    direction = Direction("tiny-for-test", str(tmp_path / "weights.pt"), "haze")
    before, after = (torch.rand(1, 3, 40, 56, generator=torch.Generator().manual_seed(k)) for k in (0, 1))
    after.requires_grad_()
    value = direction(before, after)
    value.backward()
    assert 0 <= float(value.detach()) <= 2 and after.grad.abs().sum() > 0
    direction.words = torch.nn.functional.normalize((direction._embed(after) - direction._embed(before))[0].detach(), dim=-1)
    assert float(direction(before, after.detach())) == pytest.approx(0, abs=1e-5)
    assert float(direction(after.detach(), before)) == pytest.approx(2, abs=1e-5)
    with pytest.raises(RestoreError, match="no such file"):
        Direction("tiny-for-test", str(tmp_path / "none.pt"), "haze")
    write_bytes(tmp_path / "bad.pt", b"no weights")
    with pytest.raises(RestoreError, match="bad.pt is not of tiny-for-test"):
        Direction("tiny-for-test", str(tmp_path / "bad.pt"), "haze")
