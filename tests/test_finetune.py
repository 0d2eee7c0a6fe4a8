"""Fine-tuning: gUNet's own training, whole small runs, the command and the shipped recipes."""

import copy
import dataclasses
import json
import shutil

import pytest
import torch
from torch import nn
from training_sets import mixture, recipe_of, write_sets

from finetune.__main__ import RECIPES
from finetune.__main__ import main as command
from finetune.adapt import Adaptation
from finetune.distill import Distill
from finetune.gunet import needs_synchronised_norms, norm_freezer, published_settings
from finetune.mixture import epoch_length, find_sources
from finetune.recipe import Recipe
from finetune.run import build_model, resolve, run
from restore import checkpoint
from restore.errors import RestoreError
from restore.models import create_model
from restore.recipe import read
from restore.training import learning_rate


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    return write_sets(tmp_path_factory.mktemp("sets"))


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


def test_average_command(tmp_path, capsys):
    models = [create_model("dynet", width=8) for _ in range(3)]
    files = [str(tmp_path / f"{n}.safetensors") for n in range(3)]
    for model, file in zip(models, files):
        checkpoint.save(model, file, {"recipe": file[-13:]})
    assert command(["average", *files, "-o", str(tmp_path / "mean.safetensors")]) == 0
    mean = checkpoint.load(tmp_path / "mean.safetensors")
    for name, weight in mean.named_parameters():
        a, b, c = (dict(model.named_parameters())[name] for model in models)
        assert torch.allclose(weight, (a + b + c) / 3, atol=1e-7)
    assert [part["recipe"] for part in mean.provenance["average_of"]] == [file[-13:] for file in files]

    checkpoint.save(create_model("dynet", width=16), tmp_path / "wide.safetensors")
    checkpoint.save(create_model("gunet_t", width=8), tmp_path / "norms.safetensors")
    for given, words in (([files[0]], "needs two"), ([files[0], str(tmp_path / "wide.safetensors")], "wide.safetensors: dynet of other"),
                         ([str(tmp_path / "norms.safetensors")] * 2, "fold them first")):
        assert command(["average", *given, "-o", str(tmp_path / "no.safetensors")]) == 1
        assert words in capsys.readouterr().err
    assert not (tmp_path / "no.safetensors").exists()


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
