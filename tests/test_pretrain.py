"""``python -m pretrain``: recipes right and wrong, the mixture of degradations, the plan, the command line."""

import io
import json
import tarfile
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml

import restore
from pretrain.__main__ import main
from pretrain.mixture import Mixture, validation_pairs
from pretrain.plan import plan, saved_bytes
from pretrain.recipe import Recipe
from pretrain.run import build_data, build_model, run
from restore.corpus import Folder
from restore.data import CleanImages, crop, numpy_rng, random_window
from restore.errors import RestoreError
from restore.recipe import from_dict, read, to_dict

RECIPES = Path(__file__).resolve().parents[1] / "pretrain" / "recipes"
SMALLEST = {
    "options": {"width": 8, "heads": [1, 1, 1, 1], "refinement": 1},
    "depths": {"small": [1, 1, 1, 1], "large": [1, 2, 1, 1]},
}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Forty smooth images, of which two are broken."""
    folder = tmp_path_factory.mktemp("photos")
    for number in range(40):
        image = cv2.GaussianBlur(np.random.default_rng(number).integers(0, 256, (40, 50, 3), dtype=np.uint8), (0, 0), 3)
        cv2.imwrite(str(folder / f"{number:02d}.png"), cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX))
    (folder / "07.png").write_bytes((folder / "07.png").read_bytes()[:300])
    (folder / "21.png").write_bytes(b"")
    return folder


def recipe_for(photos, **values):
    data = {"source": str(photos), "crop": 24, **values.pop("data", {})}
    return from_dict(
        Recipe,
        {
            "steps": 4,
            "batch_size": 2,
            "workers": 0,
            "device": "cpu",
            "log_every": 1,
            "checkpoint_every": 4,
            "validate_every": 4,
            "model": SMALLEST,
            "validation": {"last": 2, "side": 24},
            "data": data,
            **values,
        },
    )


@pytest.mark.parametrize("path", sorted(RECIPES.glob("*.yaml")), ids=lambda path: path.stem)
def test_shipped_recipes_are_whole(path):
    recipe = read(Recipe, path)
    assert build_model(recipe).depths.keys() == {"small", "large"}
    assert from_dict(Recipe, to_dict(recipe)) == recipe == from_dict(Recipe, json.loads(json.dumps(to_dict(recipe))))


@pytest.mark.parametrize(
    "values, message",
    [
        ({"stepz": 3}, "stepz: no such key; did you mean steps"),
        ({"data": {"source": "x", "krop": 3}}, r"data\.krop: no such key; did you mean data\.crop"),
        ({"data": {}}, r"data\.source: give a folder"),
        ({"steps": "many"}, "steps: expected int, got 'many'"),
        ({"steps": 1.5}, "steps: expected int"),
        ({"steps": True}, "steps: expected int"),
        ({"steps": float("inf")}, "steps: expected int"),
        ({"lr": float("nan")}, "lr: nan"),
        ({"steps": -5}, "steps: -5"),
        ({"lr": "1e-4x"}, "lr: expected float"),
        ({"loss": "l3"}, "loss: 'l3' is none of"),
        ({"precision": "fp8"}, "precision: 'fp8' is none of fp32, bf16, fp16"),
        ({"branches": {"strategy": "sandwitch"}}, r"branches\.strategy: 'sandwitch' is none of"),
        ({"noise": {"sigma": [50, 5]}}, r"noise\.sigma: \[50\.0, 5\.0\] must be two numbers that rise"),
        ({"noise": {"sigma": 25}}, r"noise\.sigma: expected"),
        ({"noise": {"probability": 1.2}}, r"noise\.probability: 1\.2 is not in 0\.\.1"),
        ({"jpeg": {"quality": [0, 50]}}, r"jpeg\.quality: .* lie in 1\.\.100"),
        ({"masking": {"ratio": [0.2, 1.5]}}, r"masking\.ratio"),
        ({"masking": {"patch": []}}, r"masking\.patch"),
        ({"targets": {"tasks": {"fog": 1}}}, r"targets\.tasks: 'fog' is none of noise, rain, haze"),
        ({"targets": {"tasks": {"rain": 0}}}, r"targets\.tasks: all weights are 0"),
        ({"validation": {"last": -1}}, r"validation\.last: -1"),
        ({"data": {"source": "x", "crop": 2}}, r"data\.crop: 2 is not in"),
        ({"data": {"source": "x", "on_device": True}}, "data.on_device.*workers: 0"),
    ],
)
def test_a_wrong_recipe_is_refused_by_its_key(values, message):
    with pytest.raises(RestoreError, match=message):
        from_dict(Recipe, {"data": {"source": "x"}, **values})


@pytest.mark.parametrize("text, message", [
    ("steps: [", "not YAML"), ("- 1\n- 2", "expected keys and values"), ("", r"data\.source"), (None, "No such file")])
def test_a_wrong_file_is_refused_by_its_name(tmp_path, text, message):
    path = tmp_path / "r.yaml"
    if text is not None:
        path.write_text(text)
    with pytest.raises(RestoreError, match=message):
        read(Recipe, path)


def test_yaml_numbers_as_people_write_them(tmp_path):
    (tmp_path / "r.yaml").write_text("lr: 1e-4\nsteps: 2e3\ndata: {source: x}\n")       # YAML 1.1 takes both for words
    assert read(Recipe, tmp_path / "r.yaml").lr == 1e-4
    assert read(Recipe, tmp_path / "r.yaml").steps == 2000


def clean_crop(recipe, k):
    """The crop of sample ``k``, cut by hand."""
    image, _ = CleanImages(Folder(recipe.data.source), recipe.seed).fetch(k)
    window = random_window(*image.shape[:2], recipe.data.crop, numpy_rng(recipe.seed, k))
    return crop(image, recipe.data.crop, window)


def test_sample_k_depends_on_seed_and_k_alone(photos):
    recipe = recipe_for(photos)
    one, other = Mixture(Folder(photos), recipe), Mixture(Folder(photos), recipe)
    forwards = [one.sample(k) for k in range(30)]
    for k in (29, 3, 17):
        again = other.sample(k)
        assert torch.equal(again["input"], forwards[k]["input"]) and torch.equal(again["target"], forwards[k]["target"])
        assert torch.equal(again["target"], clean_crop(recipe, k))
    other_seed = Mixture(Folder(photos), from_dict(Recipe, {**to_dict(recipe), "seed": 1}))
    assert not any(torch.equal(other_seed.sample(k)["input"], forwards[k]["input"]) for k in range(10))


def test_each_degradation_comes_as_often_and_as_strong_as_the_recipe_says(photos):
    off = {"noise": {"probability": 0}, "jpeg": {"probability": 0}, "masking": {"probability": 0}}
    clean = [Mixture(Folder(photos), recipe_for(photos, **off)).sample(k) for k in range(3)]
    assert all(torch.equal(sample["input"], sample["target"]) for sample in clean)

    recipe = recipe_for(photos, **{**off, "noise": {"probability": 0.4, "random": 0, "sigma": [20, 20]}})
    samples = [Mixture(Folder(photos), recipe).sample(k) for k in range(300)]
    noisy = [s["input"] - s["target"] for s in samples if not torch.equal(s["input"], s["target"])]
    assert abs(len(noisy) - 120) < 34                                           # four standard deviations
    middle = torch.cat([(s["input"] - s["target"])[(s["target"] > 0.4) & (s["target"] < 0.6)] for s in samples])
    assert middle[middle != 0].std().item() * 255 == pytest.approx(20, rel=0.03)

    recipe = recipe_for(photos, **{**off, "noise": {"probability": 1, "random": 1, "amplitude": [30, 30]}})
    sample = Mixture(Folder(photos), recipe).sample(1)
    difference = (sample["input"] - sample["target"]) * 255
    assert 29 < difference.abs().max() <= 30.001 and difference.abs().mean() > 12

    recipe = recipe_for(photos, **{**off, "masking": {"probability": 1, "ratio": [0.25, 0.25], "patch": [6]}})
    sample = Mixture(Folder(photos), recipe).sample(5)
    hidden = (sample["input"] == 0).all(0)
    assert hidden.float().mean().item() == pytest.approx(0.25, abs=0.02)
    assert torch.equal(sample["input"][:, ~hidden], sample["target"][:, ~hidden])

    recipe = recipe_for(photos, **{**off, "jpeg": {"probability": 1, "quality": [10, 10]}})
    sample = Mixture(Folder(photos), recipe).sample(5)
    pixels = (sample["target"] * 255).round().byte().permute(1, 2, 0).numpy()
    coded = cv2.imencode(".jpg", pixels[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 10])[1]
    decoded = cv2.imdecode(coded, cv2.IMREAD_COLOR)[..., ::-1].transpose(2, 0, 1) / 255
    assert np.abs(decoded - sample["input"].numpy()).mean() < 0.01 < (sample["input"] - sample["target"]).abs().mean()


def test_targets_are_drawn_by_weight_and_told_by_task(photos):
    recipe = recipe_for(photos, targets={"tasks": {"noise": 1, "haze": 3}}, masking={"probability": 0})
    samples = [Mixture(Folder(photos), recipe).sample(k) for k in range(80)]
    tasks = [sample["task"] for sample in samples]
    assert set(tasks) == {0, 2} and abs(tasks.count(2) - 60) < 16
    haze = [s for s in samples if s["task"] == 2]
    assert np.mean([(s["input"].std() / s["target"].std()).item() for s in haze]) < 0.9          # haze takes contrast


def test_samples_on_a_device(photos):
    """The path of ``data.on_device``, on the device that every machine has: images as tensors, the same crops."""
    recipe = recipe_for(photos)
    mixture = Mixture(Folder(photos), recipe)
    mixture.images.on_device = True
    plain = Mixture(Folder(photos), recipe)
    for k in range(10):
        assert isinstance(mixture.images.fetch(k)[0], torch.Tensor)
        ours, theirs = mixture.sample(k), plain.sample(k)
        assert torch.equal(ours["input"], theirs["input"]) and torch.equal(ours["target"], theirs["target"])


def test_validation_images_are_kept_apart(photos):
    corpus, pairs = build_data(recipe_for(photos))
    assert corpus.count == 38 and {pair.task for pair in pairs} == {"noise25", "jpeg", "masked"} and len(pairs) == 6
    assert all(pair.input.shape == (3, 24, 24) and not torch.equal(pair.input, pair.target) for pair in pairs)
    again = validation_pairs(Folder(photos), [38, 39], recipe_for(photos))
    assert all(torch.equal(a.input, b.input) for a, b in zip(pairs, again, strict=True))
    apart = recipe_for(photos, validation={"source": str(photos), "side": 0})
    corpus, pairs = build_data(apart)
    # the two broken ones are left out
    assert corpus.count == 40 and len(pairs) == 3 * 38 and pairs[0].input.shape == (3, 40, 50)
    with pytest.raises(RestoreError, match=r"validation\.last: 40 leaves none"):
        build_data(recipe_for(photos, validation={"last": 40}))


def test_a_corpus_of_broken_files_ends_before_the_run(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.jpg").write_bytes(b"\xff\xd8\xff broken")
    with pytest.raises(RestoreError, match=r"none of its first images can be read.*0\.jpg"):
        run(recipe_for(tmp_path), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_run_on_tar_shards_with_broken_members(photos, tmp_path, capsys):
    with tarfile.open(tmp_path / "shard-000.tar", "w") as tar:
        for path in sorted(photos.iterdir())[:12]:
            member = tarfile.TarInfo(path.name)
            data = path.read_bytes()
            member.size = len(data)
            tar.addfile(member, io.BytesIO(data))
    recipe = recipe_for(
        tmp_path / "shard-000.tar", steps=8, checkpoint_every=8, targets={"tasks": {"noise": 1, "rain": 1}}
    )
    final = run(recipe, tmp_path / "run")
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    assert rows[-2]["broken_files"] == 1 and rows[-2]["broken_samples"] >= 1 and "task_accuracy" in rows[0]
    assert "07.png" in capsys.readouterr().out
    model = restore.load(final)
    assert model.depths == {"small": (1, 1, 1, 1), "large": (1, 2, 1, 1)} and model.provenance["corpus"]["images"] == 10
    assert len(model.provenance["corpus"]["sha256"]) == 64
    assert {path.name for path in (tmp_path / "run").iterdir()} == {
        "recipe.yaml",
        "run.json",
        "log.jsonl",
        "checkpoints",
        "validation",
        "final",
    }


def test_saved_bytes_by_hand():
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 5, 1), torch.nn.Tanh())
    network.forward = lambda x, depth: torch.nn.Sequential.forward(network, x)
    # the input of the convolution, the output of tanh
    assert saved_bytes(network, None, 10) == 4 * 100 * (3 + 5)


def test_plan_shows_the_papers_half_and_that_it_is_the_samples(photos):
    text = plan(recipe_for(photos), timed=0)
    assert "38 of" in text and "4 steps x 2 of 24x24 = 8" in text
    lines = {line.lstrip("* ").split("  ")[0]: line.split() for line in text.splitlines()}
    assert lines["separately, each"][-2:] == ["100%", "100%"]
    assert lines["alternate"][-2:] == ["50%", "100%"]
    macs = restore.create_model("dynet", **SMALLEST["options"])
    from restore.depth import count_macs
    small, large = (3 * count_macs(macs, 24, 24, depth) for depth in ((1, 1, 1, 1), (1, 2, 1, 1)))
    assert float(lines["sandwich"][1]) == pytest.approx(2 * (small + large) / 1e9, abs=0.051)


def test_plan_with_timed_steps(photos):
    text = plan(recipe_for(photos), timed=1)
    assert "seconds a step" in text and "hours" in text


def test_the_command_line(photos, tmp_path, capsys):
    path = tmp_path / "mine.yaml"
    path.write_text(yaml.safe_dump(to_dict(recipe_for(photos))))
    assert main([str(path), "--steps", "2", "--noise.sigma", "[1, 2]", "-o", str(tmp_path / "run")]) == 0
    assert f"final weights: {tmp_path / 'run' / 'final'}" in capsys.readouterr().out
    resolved = yaml.safe_load((tmp_path / "run" / "recipe.yaml").read_text())
    assert resolved["steps"] == 2 and resolved["noise"]["sigma"] == [1.0, 2.0] and resolved["data"]["crop"] == 24
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert facts["seed"] == 0 and facts["torch"] == torch.__version__.split("+")[0] and facts["processes"] == 1
    for wrong, message in (
        (["--stepz", "3"], "--stepz: no such key; did you mean --steps?"),
        (["--steps", "x"], "steps"),
        (["--data.krop", "3"], "did you mean --data.crop?"),
        (["--branches.strategy", "single:huge"], "branches.strategy"),
        ([], "holds a run; add --resume"),
    ):
        assert main([str(path), *wrong, "-o", str(tmp_path / "run")]) == 1
        error = capsys.readouterr().err
        assert message in error and "Traceback" not in error and error.startswith("pretrain: error: ")
    assert main([str(tmp_path / "nowhere.yaml")]) == 1 and "nowhere.yaml: No such file" in capsys.readouterr().err


def test_help_and_bench(capsys):
    assert main(["--help"]) == 0 and "plan RECIPE" in capsys.readouterr().out
    assert (
        main(
            [
                "bench",
                "--samples",
                "10",
                "--crop",
                "32",
                "--steps",
                "1",
                "--width",
                "8",
                "--batch",
                "1",
                "--depth",
                "1,1,1,1",
            ]
        )
        == 0
    )
    text = capsys.readouterr().out
    assert "samples/s" in text and "noise + JPEG + masking" in text and "fp32" in text
    assert main(["bench", "--steps", "-1"]) == 1
