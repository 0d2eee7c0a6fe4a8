"""Fine-tuning: the mixture and its samples, the recipes, gUNet's own training, and whole small runs."""

import collections
import copy
import dataclasses
import json
import shutil
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from torch import nn

from finetune.__main__ import RECIPES
from finetune.__main__ import main as command
from finetune.adapt import Adaptation
from finetune.degrade import degrade
from finetune.distill import Distill
from finetune.gunet import needs_synchronised_norms, norm_freezer, published_settings
from finetune.mixture import BLOCK, Mixture, epoch_length, find_sources, table
from finetune.recipe import SYNTHETIC, Recipe, Task
from finetune.run import build_model, resolve, run
from finetune.validation import validation_pairs
from restore import checkpoint
from restore.data import batches
from restore.errors import RestoreError
from restore.models import create_model
from restore.recipe import from_dict, read
from restore.training import learning_rate

OFFSET = 40         # what the degraded images of the pairs here have more than the clean ones


def picture(number, height=40, width=48):
    """A smooth random picture, its number in the red channel: values from 40 to 200, so that OFFSET fits above."""
    rng = np.random.default_rng(number)
    small = rng.integers(40, 200, (6, 7, 3), dtype=np.uint8)
    image = cv2.resize(small, (width, height), interpolation=cv2.INTER_LINEAR)
    image[..., 0] = 40 + number
    return image


def write(path, image):
    path.parent.mkdir(parents=True, exist_ok=True)
    assert cv2.imwrite(str(path), image[..., ::-1])


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """Clean photos in ``clean``, rainy pairs in ``rain``, hazy ones (two for a scene) in ``haze``."""
    root = tmp_path_factory.mktemp("sets")
    for n in range(12):
        write(root / f"clean/{n}.png", picture(n))
    for n in range(12, 24):
        write(root / f"rain/norain-{n}.png", picture(n))
        write(root / f"rain/rainy/rain-{n}.png", picture(n) + OFFSET)
    for n in range(24, 30):
        write(root / f"haze/clear/{n}.png", picture(n))
        for light in (1, 2):
            write(root / f"haze/hazy/{n}_{light}.png", picture(n) + OFFSET)
    return root


def recipe_of(sets, **changes):
    """A recipe of three tasks: noise on photos, rain from pairs, haze from both in equal parts."""
    values = {"steps": 4, "batch_size": 2, "workers": 0, "device": "cpu", "warmup": 1, "log_every": 1, "validate_every": 100,
              "checkpoint_every": 2, "data": {"crop": 16}, "validation": {"images": 1, "side": 24}, "model": {
                  "name": "dynet", "options": {"width": 8, "refinement": 1}, "depths": {"small": [1, 1, 1, 1], "large": [1, 1, 1, 2]}},
              "tasks": {"denoise": {"clean": str(sets / "clean"), "weight": 2, "holdout": 0},
                        "derain": {"pairs": str(sets / "rain"), "weight": 1, "holdout": 0},
                        "dehaze": {"pairs": str(sets / "haze"), "clean": [str(sets / "clean")], "weight": 1, "holdout": 0}}}
    return from_dict(Recipe, {**values, **changes})


def mixture(recipe):
    return Mixture(find_sources(recipe), recipe.data.crop, recipe.seed)


# -- the mixture -------------------------------------------------------------------------------------------------------

def test_shares_are_as_the_weights_say(sets):
    samples = mixture(recipe_of(sets))
    drawn = collections.Counter(samples.place(k)[0] for k in range(1000))
    for number, share in enumerate((0.5, 0.25, 0.125, 0.125)):
        assert abs(drawn[number] / 1000 - share) < 0.02
        assert samples.sources[number].share == pytest.approx(share, abs=1e-9)
    assert collections.Counter(samples.place(k)[0] for k in range(BLOCK, 2 * BLOCK)) == {0: 512, 1: 256, 2: 128, 3: 128}


def test_every_image_comes_once_before_any_comes_again(sets):
    samples = mixture(recipe_of(sets))
    for number, source in enumerate(samples.sources):
        own = [samples.place(k)[1] for k in range(3 * BLOCK) if samples.place(k)[0] == number]
        assert own == list(range(len(own)))
        fetched = [samples.images[number].fetch(place)[0] for place in range(source.corpus.count)]
        scenes = collections.Counter(int(image[0, 0, -3]) for image in fetched)              # the clean image's red channel
        assert set(scenes.values()) == ({2} if source.label == "dehaze" and source.paired else {1})


def test_shrinking_shows_more_of_the_scene(tmp_path):
    """On a ramp that rises by 2 levels a pixel, and falls again in mirrored samples, half the size means 4 levels a pixel."""
    ramp = np.repeat(np.tile(np.arange(100, dtype=np.uint8) * 2, (100, 1))[..., None], 3, axis=2)
    write(tmp_path / "ramp.png", ramp)
    for shrink, slope in (([], 2), ([2, 2], 4)):
        task = {"clean": str(tmp_path), "sigmas": [0], "shrink": shrink, "holdout": 0}
        target = mixture(recipe_of(tmp_path, tasks={"denoise": task})).sample(0)["target"] * 255
        steepest = max(target.diff(dim=dim).abs()[:, 2:-2, 2:-2].mean().item() for dim in (1, 2))
        assert steepest == pytest.approx(slope, abs=0.1)


def test_transplanted_rain_is_that_of_a_pair(sets):
    """The pairs have OFFSET more light everywhere: that, times 0.67 to 1.33, must come upon the clean photos."""
    both = {"pairs": str(sets / "rain"), "clean": str(sets / "clean"), "synthetic": 1.0, "transplant": 1.0, "holdout": 0}
    samples = mixture(recipe_of(sets, tasks={"derain": both}))
    assert [source.paired for source in samples.sources] == [False]
    gains = set()
    for k in range(12):
        sample = samples.sample(k)
        assert 40 <= sample["target"][0].min() * 255 < 52                       # photos 0 to 11, not the pairs' 12 to 23
        rain = (sample["input"] - sample["target"]) * 255
        assert rain.max() - rain.min() < 1.01 and 0.66 * OFFSET < rain.mean() < 1.34 * OFFSET
        gains.add(round(rain.mean().item()))
    assert len(gains) > 4


def test_gain_brightens_clean_images_before_they_are_degraded(sets):
    for gain, least, most in (([], 0.999, 1.001), ([1.2, 1.25], 1.199, 1.251), ([4, 4], 3.99, 4.01)):
        task = {"clean": str(sets / "clean"), "sigmas": [0], "gain": gain, "holdout": 0}
        plain = {**task, "gain": []}
        bright, own = (mixture(recipe_of(sets, tasks={"denoise": t})).sample(3) for t in (task, plain))
        ratio = bright["target"][0].amin() / own["target"][0].amin()            # the red channel is even, 40 to 51 of 255
        assert least < ratio < most
        assert bright["target"].max() <= 1 and (bright["input"] - bright["target"]).abs().max() < 1.01 / 255


def test_repeated_short_sets_weigh_by_their_repeats(sets):
    recipe = recipe_of(sets, data={"crop": 16, "balance": "repeats"})
    tasks = {name: dataclasses.replace(task, repeat=repeat, synthetic=0.0)
             for (name, task), repeat in zip(recipe.tasks.items(), (9, 20, 1))}
    recipe = dataclasses.replace(recipe, tasks=tasks)
    sources = find_sources(recipe)
    assert [s.label for s in sources] == ["denoise", "derain", "dehaze"]      # a share of nothing is no source
    whole = 12 * 9 + 12 * 20 + 24
    assert [s.share for s in sources] == pytest.approx([12 * 9 / whole, 12 * 20 / whole, 24 / whole], abs=1 / BLOCK)


def test_a_sample_depends_on_its_number_alone(sets):
    recipe = recipe_of(sets)
    first, second = mixture(recipe), mixture(recipe)
    wanted = [first.sample(k) for k in range(24)]
    for k in reversed(range(24)):
        again = second.sample(k)
        assert torch.equal(again["input"], wanted[k]["input"]) and torch.equal(again["target"], wanted[k]["target"])
    other = mixture(dataclasses.replace(recipe, seed=1))
    assert sum(torch.equal(other.sample(k)["input"], wanted[k]["input"]) for k in range(24)) == 0
    with_worker = batches(mixture(recipe), 4, start_step=2, workers=1)
    assert torch.equal(next(with_worker)["input"], torch.stack([sample["input"] for sample in wanted[8:12]]))


def test_pairs_are_cut_and_turned_together(sets):
    samples = mixture(recipe_of(sets))
    seen = 0
    for k in range(80):
        if samples.sources[samples.place(k)[0]].paired:
            sample = samples.sample(k)
            difference = sample["input"] - sample["target"]
            assert sample["input"].shape == (3, 16, 16)
            assert torch.allclose(difference, torch.full_like(difference, OFFSET / 255), atol=1e-6)
            seen += 1
    assert seen > 20


def test_images_kept_as_tensors_give_the_same_samples(sets):
    """As with ``data.on_device``, but on the CPU, where both ways draw the same numbers."""
    recipe = recipe_of(sets)
    arrays, tensors = mixture(recipe), mixture(recipe)
    for images in tensors.images:
        images.on_device = True
    for k in range(12):
        expected, sample = arrays.sample(k), tensors.sample(k)
        assert torch.equal(sample["input"], expected["input"]) and torch.equal(sample["target"], expected["target"])


def test_images_smaller_than_the_crop(sets):
    samples = mixture(recipe_of(sets, data={"crop": 64}))
    for k in range(12):
        sample = samples.sample(k)
        assert sample["input"].shape == sample["target"].shape == (3, 64, 64)


@pytest.mark.parametrize("kind", SYNTHETIC)
def test_made_degradations(kind):
    image = torch.from_numpy(picture(5, 64, 64).transpose(2, 0, 1).copy()).float() / 255
    task, different = Task(), set()
    for number in range(6):
        made = degrade(kind, image, np.random.default_rng(number), torch.Generator().manual_seed(number), task)
        again = degrade(kind, image, np.random.default_rng(number), torch.Generator().manual_seed(number), task)
        assert torch.equal(made, again)
        assert made.shape == image.shape and 0 <= made.min() and made.max() <= 1
        assert torch.allclose(made * 255, (made * 255).round(), atol=1e-3)              # levels that a file has
        different.add(round(float((made - image).abs().mean()), 6))
    assert len(different) == 6 and min(different) > 0


def test_noise_is_truncated_as_in_the_benchmarks():
    image = torch.full((3, 128, 128), 128 / 255)
    for sigma in (15.0, 50.0):
        noisy, plain = (degrade("denoise", image, np.random.default_rng(0), torch.Generator().manual_seed(0),
                                Task(sigmas=[sigma], truncate=truncate)) for truncate in (True, False))
        cut = (plain - noisy) * 255
        assert -1e-3 < cut.min() and cut.max() < 1 + 1e-3
        inner = (plain * 255 - 128)
        assert float(inner.std()) == pytest.approx(sigma, rel=0.02)
        assert float((noisy - plain).mean() * 255) == pytest.approx(-0.5, abs=0.02)
    drawn = [float((degrade("denoise", image, np.random.default_rng(n), torch.Generator().manual_seed(n),
                            Task(sigma_range=[5, 50])) * 255).std()) for n in range(40)]
    assert 4 < min(drawn) < 15 and 40 < max(drawn) < 51


def test_held_back_scenes_are_not_trained_on(sets):
    recipe = recipe_of(sets)
    recipe = dataclasses.replace(recipe, tasks={name: dataclasses.replace(task, holdout=1) for name, task in recipe.tasks.items()})
    sources = find_sources(recipe)
    rain, haze = sources[1], sources[2]
    assert rain.corpus.count == 11 and haze.corpus.count == 10            # both hazy versions of a scene go
    assert not {p.clean for p in haze.held} & {p.clean for p in haze.corpus.pairs}
    assert sources[0].corpus.count == 11
    pairs = validation_pairs(recipe, sources)
    assert [p.task for p in pairs] == ["derain", "dehaze", "denoise 15", "denoise 25", "denoise 50"]
    assert all(p.input.shape == p.target.shape == (3, 24, 24) for p in pairs)
    held = picture(int(rain.held[0].clean.stem[7:]))[8:32, 12:36]
    assert torch.equal(pairs[0].target, torch.from_numpy(held.transpose(2, 0, 1).copy()).float() / 255)
    again = validation_pairs(recipe, find_sources(recipe))
    assert all(torch.equal(a.input, b.input) for a, b in zip(pairs, again))
    given = dataclasses.replace(recipe.tasks["denoise"], validation=str(sets / "haze/clear"), sigmas=[25.0], holdout=9)
    recipe = dataclasses.replace(recipe, tasks={"denoise": given})
    assert find_sources(recipe)[0].corpus.count == 12                       # nothing need be held back
    assert [(p.name, p.task) for p in validation_pairs(recipe, find_sources(recipe))] == [("24", "denoise 25")]


def test_the_table_counts_and_names(sets, tmp_path):
    shutil.copytree(sets / "rain", tmp_path / "rain")
    (tmp_path / "rain/norain-13.png").unlink()
    recipe = recipe_of(sets)
    recipe.tasks["derain"].pairs = [str(tmp_path / "rain"), [str(sets / "haze/hazy"), str(sets / "haze/clear")]]
    lines = table(find_sources(recipe)).splitlines()
    assert lines[0].split() == ["task", "source", "images", "held", "share"]
    assert lines[1].split()[0] == "denoise" and lines[1].split()[-3:] == ["12", "0", "50.0%"]
    assert lines[2].split()[-3:] == ["23", "0", "25.0%"]
    assert any("1 without a clean partner" in line and "rain-13.png" in line for line in lines[5:])


# -- what is wrong ---------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("changes, words", [
    ({"tasks": {}}, "tasks: the mixture is empty"),
    ({"tasks": {"derian": {"pairs": "x"}}}, "tasks.derian.kind: 'derian' is none of denoise"),
    ({"tasks": {"mine": {"kind": "deblur", "clean": "x"}}}, "tasks.mine.clean: deblur cannot be made"),
    ({"tasks": {"deblur": {}}}, "tasks.deblur.pairs: give pairs$"),
    ({"tasks": {"denoise": {"clean": "x", "sigma": [25]}}}, "tasks.denoise.sigma: no such key; did you mean tasks.denoise.sigmas"),
    ({"tasks": {"denoise": {"clean": "x", "sigmas": [300]}}}, "tasks.denoise.sigmas: .300.0. must list levels"),
    ({"tasks": {"denoise": {"clean": "x", "weight": 0}}}, "tasks.denoise.weight: 0.0 must be positive"),
    ({"tasks": {"jpeg": {"clean": "x", "quality": [90, 10]}}}, "tasks.jpeg.quality"),
    ({"tasks": {"derain": {"clean": "x", "transplant": 0.5}}}, "tasks.derain.transplant: rain goes from pairs"),
    ({"tasks": {"derain": {"clean": "x", "synthetic": 2}}}, "tasks.derain.synthetic: 2.0 is not in 0..1"),
    ({"steps": 0}, "steps: say how long"), ({"steps": -1}, "steps: -1"), ({"epochs": 2, "warmup_epochs": 2}, "warmup_epochs"),
    ({"freeze_norms": 1.5}, "freeze_norms"), ({"data": {"crop": 1}}, "data.crop: 1"), ({"data": {"balance": "weight"}}, "weights"),
    ({"data": {"on_device": True}, "workers": 2}, "on_device.*workers: 0"),
    ({"start": "", "model": {}}, "--from CHECKPOINT"), ({"model": {"name": "dinet"}}, "did you mean 'dynet'"),
    ({"start": "nowhere"}, "nowhere: no such file"), ({"batch_size": 0}, "batch_size: 0 means as published.*not for dynet")])
def test_impossible_recipes_are_refused_by_name(sets, changes, words):
    with pytest.raises(RestoreError, match=words):
        recipe = recipe_of(sets, **changes)
        resolve(recipe, build_model(recipe), find_sources(recipe))


def test_missing_sets_are_named(sets, tmp_path):
    for entry, words in ((str(tmp_path / "gone"), "tasks.derain: .*gone: no such folder"),
                         (str(sets / "clean"), "tasks.derain: .*clean: no pairs for derain"),
                         (str(sets / "haze"), "no pairs for derain(.|\n)*not used: .*haze .dehaze"),
                         ([str(sets / "rain")], "two folders")):
        recipe = recipe_of(sets, tasks={"derain": {"pairs": [entry]}})
        with pytest.raises(RestoreError, match=words):
            find_sources(recipe)


def test_broken_files_are_replaced_and_named(sets, tmp_path):
    shutil.copytree(sets / "clean", tmp_path / "clean")
    (tmp_path / "clean/3.png").write_bytes((sets / "clean/3.png").read_bytes()[:200])
    recipe = recipe_of(sets, tasks={"denoise": {"clean": str(tmp_path / "clean"), "holdout": 0}})
    samples = mixture(recipe)
    skipped = [samples.sample(k)["skipped"] for k in range(12)]
    named = [text for text in skipped if text]
    assert len(named) == 1 and "clean/3.png" in named[0]                    # met once in a pass over twelve images


# -- gUNet's training ------------------------------------------------------------------------------------------------

def test_published_settings_of_gunet():
    expected = {"gunet_t": (128, 16e-4), "gunet_s": (128, 16e-4), "gunet_b": (64, 8e-4), "gunet_d": (32, 4e-4)}
    for name, (batch, lr) in expected.items():
        assert published_settings(name, 0, 0) == (batch, pytest.approx(lr))
    assert published_settings("gunet_b", 16, 0) == (16, pytest.approx(2e-4))
    assert published_settings("dynet", 8, 1e-3) == (8, 1e-3)


def test_gunet_schedule_is_the_papers(sets):
    recipe = read(Recipe, RECIPES / "gunet.yaml", [("tasks.dehaze.pairs", str(sets / "haze")), ("model.name", "gunet_b")])
    known = resolve(recipe, build_model(recipe), find_sources(recipe))
    per_epoch = 16384 // 64
    assert (known.batch_size, known.steps, known.warmup) == (64, 1000 * per_epoch, 50 * per_epoch)
    assert learning_rate(known, known.warmup) == pytest.approx(8e-4)
    assert learning_rate(known, known.steps) == pytest.approx(8e-6)
    shorter = resolve(dataclasses.replace(recipe, steps=1000), build_model(recipe), find_sources(recipe))
    assert (shorter.steps, shorter.warmup) == (1000, 50)


def test_norms_are_synchronised_below_sixteen_images():
    gunet, dynet = create_model("gunet_t", width=8), create_model("dynet", width=8)
    assert needs_synchronised_norms(gunet, 32, processes=4)
    assert not needs_synchronised_norms(gunet, 64, processes=4)
    assert not needs_synchronised_norms(gunet, 8, processes=1)
    assert not needs_synchronised_norms(dynet, 8, processes=4)


def test_norms_freeze_for_the_last_fifth():
    model, freeze = create_model("gunet_t", width=8), norm_freezer(steps=10, share=0.2)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    x = torch.rand(2, 3, 24, 24)
    for step in range(10):
        model.train()
        freeze(step, model)
        before = [m.running_mean.clone() for m in norms]
        model(x).mean().backward()
        moved = [not torch.equal(a, m.running_mean) for a, m in zip(before, norms)]
        assert all(moved) if step < 8 else not any(moved)
    assert all(m.weight.grad is not None for m in norms)                    # their scales go on learning


def test_gunet_trains_from_scratch(sets, tmp_path):
    recipe = read(Recipe, RECIPES / "gunet_small.yaml", [
        ("tasks.dehaze.pairs", str(sets / "haze")), ("tasks.dehaze.clean", str(sets / "clean")), ("model.options", {"width": 8}),
        ("epochs", 5), ("warmup_epochs", 1), ("data.epoch", 8), ("batch_size", 4), ("data.crop", 24), ("workers", 0), ("device", "cpu")])
    final = run(recipe, tmp_path / "run", tell=lambda text: None)
    trained = checkpoint.load(final)
    assert trained.name == "gunet_t" and trained.provenance["steps"] == 10
    counts = {int(value) for key, value in trained.state_dict().items() if key.endswith("num_batches_tracked")}
    assert counts == {8}                                                     # frozen for the last two of ten steps


# -- whole runs --------------------------------------------------------------------------------------------------------

@pytest.fixture(scope="module")
def started(sets, tmp_path_factory):
    """A checkpoint to start from."""
    folder = tmp_path_factory.mktemp("start")
    checkpoint.save(build_model(recipe_of(sets)), folder)
    return folder


def loss_on(model, batch):
    with torch.no_grad():
        return {depth: float((model(batch["input"], depth) - batch["target"]).abs().mean()) for depth in model.depths}


def test_fine_tuning_lowers_the_loss_at_every_depth(sets, started, tmp_path):
    recipe = recipe_of(sets, start=str(started), steps=30, batch_size=4, lr=2e-3, warmup=2, ema=0.8, checkpoint_every=30,
                       branches={"strategy": "sandwich"}, validate_every=30)
    told = []
    final = run(recipe, tmp_path / "run", tell=told.append)
    samples = mixture(recipe)
    fixed = [samples.sample(k) for k in range(10 ** 6, 10 ** 6 + 16)]
    batch = {key: torch.stack([s[key] for s in fixed]) for key in ("input", "target")}
    before, after = loss_on(checkpoint.load(started), batch), loss_on(checkpoint.load(final), batch)
    assert after["small"] < 0.9 * before["small"] and after["large"] < 0.9 * before["large"]
    assert "denoise" in told[0] and "50.0%" in told[0]
    facts = checkpoint.load(final).provenance
    assert [m["share"] for m in facts["mixture"]] == [0.5, 0.25, 0.125, 0.125] and len(facts["data_sha256"]) == 64


def test_a_killed_run_goes_on_to_the_same_bits(sets, started, tmp_path):
    recipe = recipe_of(sets, start=str(started), keep_checkpoints=5)
    whole = run(recipe, tmp_path / "whole", tell=print)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed/final")
    shutil.rmtree(tmp_path / "killed/checkpoints/step-00000004")
    resumed = run(recipe, tmp_path / "killed", resume=True, tell=print)
    a, b = checkpoint.load(whole).state_dict(), checkpoint.load(resumed).state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    start = checkpoint.load(started).state_dict()
    assert not all(torch.equal(a[key], start[key]) for key in a)
    with pytest.raises(RestoreError, match="tasks.denoise.weight was 2.0 and is now 3.0"):
        changed = copy.deepcopy(recipe)
        changed.tasks["denoise"].weight = 3.0
        run(changed, tmp_path / "killed", resume=True, tell=print)


def test_one_depth_and_new_depths(sets, started, tmp_path):
    recipe = recipe_of(sets, start=str(started), steps=1, warmup=0, branches={"strategy": "single:tiny"},
                       model={"depths": {"tiny": [1, 1, 1, 1], "deep": [2, 2, 2, 2]}})
    final = checkpoint.load(run(recipe, tmp_path / "run", tell=print))
    assert final.depths == {"tiny": (1, 1, 1, 1), "deep": (2, 2, 2, 2)} and final.default_depth == "deep"


def test_checkpoints_that_cannot_be_trained(sets, tmp_path):
    from restore.models.gunet import fold_batchnorm
    checkpoint.save(fold_batchnorm(create_model("gunet_t", width=8)), tmp_path / "folded.safetensors")
    with pytest.raises(RestoreError, match="folded for deployment"):
        build_model(recipe_of(sets, start=str(tmp_path / "folded.safetensors"), model={}))
    with pytest.raises(RestoreError, match="model.name: dynet, but .* holds gunet_t"):
        build_model(recipe_of(sets, start=str(tmp_path / "folded.safetensors")))


# -- the command -------------------------------------------------------------------------------------------------------

def test_two_folders_are_enough(sets, started, tmp_path, capsys):
    out = tmp_path / "mine"
    assert command(["--pairs", str(sets / "haze/hazy"), str(sets / "haze/clear"), "--from", str(started), "-o", str(out), "--steps", "6",
                    "--data.crop", "16", "--batch_size", "1", "--device", "cpu", "--workers", "0", "--tasks.pairs.holdout=1"]) == 0
    text = capsys.readouterr().out
    assert "pairs: " in text and "hazy" in text and "100.0%" in text and f"final weights: {out / 'final'}" in text
    assert checkpoint.load(out / "final").provenance["steps"] == 6
    rows = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    assert set(rows[-1]["psnr"]) == {"input", "small", "large"}
    assert command(["--pairs", str(sets / "haze/hazy"), "--from", str(started)]) == 1
    assert command(["--pairs", str(sets / "clean"), str(tmp_path / "gone"), "--from", str(started), "-o", str(tmp_path / "x")]) == 1
    errors = capsys.readouterr().err
    assert "--pairs: give two folders" in errors and "gone: no such folder" in errors


def test_count_and_options_of_single_tasks(sets, capsys):
    recipe = str(RECIPES / "tiny.yaml")
    places = ["--tasks.denoise.clean", str(sets / "clean"), "--tasks.derain.clean", str(sets / "clean"), "--tasks.dehaze.clean",
              str(sets / "clean"), f"--tasks.derain.pairs={sets / 'rain'}", f"--tasks.dehaze.pairs={sets / 'haze'}"]
    assert command(["count", recipe, *places, "--tasks.denoise.weight", "4", "--tasks.derain.synthetic", "0"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].split()[-1] == "66.7%" and len(lines) == 5
    assert command(["count", recipe, *places, "--tasks.denoise.wieght", "4"]) == 1
    assert "tasks.denoise.wieght: no such key; did you mean tasks.denoise.weight?" in capsys.readouterr().err
    assert command(["count", recipe, *places, "--batch-sise", "4"]) == 1
    assert "did you mean" in capsys.readouterr().err


def test_fold_command(tmp_path, capsys):
    model = create_model("gunet_t", width=8).eval()
    checkpoint.save(model, tmp_path / "plain.safetensors")
    assert command(["fold", str(tmp_path / "plain.safetensors"), "-o", str(tmp_path / "folded.safetensors")]) == 0
    x = torch.rand(1, 3, 24, 24)
    with torch.no_grad():
        assert (checkpoint.load(tmp_path / "folded.safetensors")(x) - model(x)).abs().max() < 1e-5
    checkpoint.save(create_model("dynet", width=8), tmp_path / "dynet.safetensors")
    assert command(["fold", str(tmp_path / "dynet.safetensors"), "-o", str(tmp_path / "no.safetensors")]) == 1
    assert "no batch normalisation" in capsys.readouterr().err


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_valid(path):
    kind = {"adapt": Adaptation, "distill": Distill}.get(path.stem.split("_")[0], Recipe)
    # what a recipe leaves to the command line
    given = [("tasks.pairs.pairs", [["in", "gt"]])] if path.stem == "pairs" else [("start", "net"), ("real", "photos")] if kind is Adaptation else []
    assert read(kind, path, given)


def test_epochs_of_the_three_task_recipe_count_repeats(sets):
    recipe = read(Recipe, RECIPES / "three_task.yaml", [
        ("tasks.denoise.clean", str(sets / "clean")), ("tasks.derain.pairs", str(sets / "rain")),
        ("tasks.dehaze.pairs", str(sets / "haze")), *((f"tasks.{t}.holdout", 0) for t in ("denoise", "derain", "dehaze"))])
    sources = find_sources(recipe)
    assert epoch_length(recipe, sources) == 12 * 9 + 12 * 120 + 12
    assert {s.label: s.task.repeat for s in sources} == {"denoise": 9, "derain": 120, "dehaze": 1}


def test_reside_borders_are_cut_from_the_clean_image(tmp_path):
    clean = picture(1, 60, 64)
    write(tmp_path / "clear/1.png", clean)
    write(tmp_path / "hazy/1_1.png", clean[10:-10, 10:-10] + OFFSET)
    source, = find_sources(from_dict(Recipe, {"steps": 1, "tasks": {"dehaze": {"pairs": str(tmp_path)}}}))
    both = source.corpus.read(0)
    assert both.shape == (40, 44, 6) and np.array_equal(both[..., :3], both[..., 3:] + OFFSET)


def test_clean_images_from_shards(sets, tmp_path):
    import tarfile
    (tmp_path / "shards").mkdir()
    for shard in range(2):
        with tarfile.open(tmp_path / f"shards/{shard}.tar", "w") as tar:
            for n in range(6 * shard, 6 * shard + 6):
                tar.add(sets / f"clean/{n}.png", arcname=f"{n}.png")
    recipe = recipe_of(sets, tasks={"denoise": {"clean": [str(tmp_path / "shards"), str(sets / "haze/clear")], "holdout": 1}})
    source, = find_sources(recipe)
    assert source.corpus.count == 17 and len(source.held) == 1
    numbers = {int(source.corpus.read(index)[0, 0, 0]) - 40 for index in range(17)}
    assert len(numbers) == 17 and numbers < {*range(12), *range(24, 30)}
    assert Path(source.corpus.raw(0)[0]).name == "0.png"
