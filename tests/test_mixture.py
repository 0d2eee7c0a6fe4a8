"""The fine-tuning mixture: shares, samples, degradations made on the fly, held-back scenes, and what is wrong with a recipe."""

import collections
import dataclasses
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from training_sets import OFFSET, mixture, picture, recipe_of, write, write_sets

from finetune.degrade import degrade
from finetune.mixture import BLOCK, find_sources, table
from finetune.recipe import SYNTHETIC, Recipe, Task
from finetune.run import build_model, resolve
from finetune.validation import validation_pairs
from restore.data import batches
from restore.errors import RestoreError
from restore.recipe import from_dict


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


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


def test_strength_multiplies_what_a_pair_adds(sets):
    """The pairs have OFFSET more light everywhere: it must come 0.5 to 1.5 times, over the pairs' own clean images."""
    samples = mixture(recipe_of(sets, tasks={"dehaze": {"pairs": str(sets / "haze"), "strength": [0.5, 1.5], "holdout": 0}}))
    found = set()
    for k in range(16):
        sample = samples.sample(k)
        haze = (sample["input"] - sample["target"]) * 255
        assert haze.max() - haze.min() < 1.01 and 0.49 * OFFSET < haze.mean() < 1.51 * OFFSET
        assert 64 <= round(sample["target"][0].min().item() * 255) < 70         # photos 24 to 29
        found.add(round(haze.mean().item()))
    assert len(found) > 8 and min(found) < 0.8 * OFFSET and max(found) > 1.2 * OFFSET


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
    ({"tasks": {"derain": {"pairs": "x", "strength": [2, 1]}}}, "tasks.derain.strength"),
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
