"""``python -m pretrain study``: equal cost, resumption, paired differences, the report."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas
import pytest
import yaml

from pretrain import study as studies
from pretrain.__main__ import main
from pretrain.recipe import Recipe
from pretrain.study import Study, runs, steps_within
from pretrain.study_report import paired
from pretrain.study_scores import Image, load_images, score
from restore import checkpoint
from restore.branches import plan
from restore.depth import count_macs, parse_depth
from restore.errors import RestoreError
from restore.models import create_model
from restore.recipe import from_dict, read

STUDIES = Path(studies.__file__).parent / "studies"
DEPTHS = {"tiny": [1, 1, 1, 1], "small": [1, 2, 1, 1], "large": [2, 2, 2, 2]}
NETWORK = {"name": "anydepth", "options": {"width": [4, 4, 4, 4]}, "depths": DEPTHS}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A bench folder and, beside it, six smooth training images."""
    root = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    for folder, count, side in (("clean", 6, 40), ("bench/CBSD68", 3, 48), ("bench/Rain100L/clean", 2, 48), ("bench/Rain100L/rainy", 2, 48)):
        (root / folder).mkdir(parents=True)
        for number in range(count):
            image = cv2.GaussianBlur(rng.integers(0, 256, (side, side, 3), dtype=np.uint8), (0, 0), 3)
            cv2.imwrite(str(root / folder / f"{number:02d}.png"), cv2.normalize(image, None, 0, 255, cv2.NORM_MINMAX))
    return root


def recipe_of(photos, **values):
    return {"batch_size": 2, "workers": 0, "device": "cpu", "model": NETWORK, "validation": {"last": 0}, "checkpoint_every": 2,
            "data": {"source": str(photos / "clean"), "crop": 16, "pool": 4}, "masking": {"probability": 0},
            "targets": {"tasks": {"noise": 1}, "classify": 0}, **values}


def study_of(photos, **values):
    return {"title": "Tiny", "cost": 3e6, "seeds": [0, 1], "depths": ["tiny", "2,1,1,1", "large"],
            "scores": {"data": str(photos / "bench"), "sets": ["cbsd68-25", "rain100l"], "images": 2, "side": 32},
            "recipe": recipe_of(photos), "arms": {
                "alternate": {}, "sandwich": {"keys": {"branches.strategy": "sandwich"}},
                "alone": {"keys": {"branches.strategy": "single:tiny"}, "cost": "share"},
                "masked": {"first": {"masking.probability": 1}, "group": "ablation", "seeds": 1}}, **values}


@pytest.mark.parametrize("branches", [{}, {"strategy": "sandwich"}, {"strategy": "per_sample"}, {"grow": 0.7},
                                      {"strategy": "single:large"}])
def test_every_strategy_spends_the_cost_and_not_more(photos, branches):
    recipe = from_dict(Recipe, recipe_of(photos, branches=branches))
    model = create_model("anydepth", width=[4, 4, 4, 4], depths=DEPTHS)
    price = {name: 3 * count_macs(model, 16, 16, parse_depth(name)) for name in DEPTHS}
    cost = 100 * price["large"]
    steps = steps_within(recipe, cost)

    def spent(count):
        return sum(price[item.depth] * (item.rows.stop - item.rows.start) for step in range(count)
                   for item in plan(recipe.branches, list(DEPTHS), 0, step, rows=2, steps=steps))
    assert spent(steps) <= cost
    assert cost - spent(steps) <= 2 * sum(price.values())            # less than one dearest step is left over
    with pytest.raises(RestoreError, match="less than one step"):
        steps_within(recipe, price["tiny"] / 2)


def test_specialists_by_share_cost_together_what_the_base_costs(photos):
    arms = {"alternate": {}, **{name: {"keys": {"branches.strategy": f"single:{name}"}, "cost": "share"} for name in DEPTHS}}
    study = from_dict(Study, study_of(photos, arms=arms, cost=3e8, seeds=[0]))
    base, *alone = runs(study, "out")
    assert len({run.phases[0].steps for run in alone}) == 1           # as many steps as the base gives each depth
    assert 3 * alone[0].phases[0].steps == pytest.approx(base.phases[0].steps, rel=0.15)


def test_runs_come_seed_by_seed(photos):
    study = from_dict(Study, study_of(photos))
    assert [(r.name, r.seed) for r in runs(study, "out")] == [
        ("alternate", 0), ("sandwich", 0), ("alone", 0), ("masked", 0), ("alternate", 1), ("sandwich", 1), ("alone", 1)]
    first, second = runs(study, "out")[3].phases
    assert (first.masking.probability, second.masking.probability) == (1, 0) and second.start.endswith("masked-0/phase-1/final")


@pytest.fixture(scope="module")
def finished(photos, tmp_path_factory):
    """A study gone through by the command; its folder and its YAML file."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(yaml.safe_dump(study_of(photos)))
    assert main(["study", str(folder / "study.yaml"), "-o", str(folder / "out")]) == 0
    return folder


def test_the_report_is_whole(finished):
    out = finished / "out"
    rows = pandas.read_csv(out / "results.csv")
    assert len(rows) == 7 * 3 * 4                                     # runs, depths, images
    assert rows.equals(pandas.read_csv(out / "results.csv")) and len(pandas.read_parquet(out / "results.parquet")) == len(rows)
    trained = rows[rows["arm"] == "alternate"].groupby("depth")["trained"].all()
    assert trained["tiny"] and trained["large"] and not trained["2,1,1,1"]
    summary = json.loads((out / "summary.json").read_text())
    mine = rows[(rows["arm"] == "sandwich") & (rows["depth"] == "large")].groupby("set")["psnr"].mean().mean()
    base = rows[(rows["arm"] == "alternate") & (rows["depth"] == "large")].groupby("set")["psnr"].mean().mean()
    cell = summary["arms"]["sandwich"]["large"]
    assert cell["psnr"] == pytest.approx(mine, abs=1e-4) and cell["difference"] == pytest.approx(mine - base, abs=1e-4)
    assert cell["low"] <= cell["difference"] <= cell["high"] and len(cell["each"]) == 2
    text = (out / "summary.md").read_text()
    assert "| sandwich | alternate |" in text and "### Against the specialists" in text
    for group in ("main", "ablation"):
        assert f"curves-{group}.png" in text and (out / f"curves-{group}.png").stat().st_size < 100_000
    assert not list(out.glob("runs/*/*/checkpoints"))


def test_nothing_is_repeated_but_the_run_that_is_missing(finished, capsys):
    out = finished / "out"
    before = (out / "results.csv").read_bytes()
    kept = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/scores.csv")}
    (out / "runs" / "sandwich-1" / "run.json").unlink()               # as if killed before it was scored
    assert main(["study", str(finished / "study.yaml"), "-o", str(out)]) == 1
    assert "add --resume" in capsys.readouterr().err
    assert main(["study", str(finished / "study.yaml"), "-o", str(out), "--resume"]) == 0
    assert "1 to do here" in capsys.readouterr().out
    assert (out / "results.csv").read_bytes() == before
    assert {p.parent.name for p in kept if p.stat().st_mtime_ns != kept[p]} == {"sandwich-1"}


def test_a_changed_arm_is_refused_and_changed_scores_are_taken_anew(finished, photos, capsys):
    command = ["study", str(finished / "study.yaml"), "-o", str(finished / "out"), "--resume"]
    assert main([*command, "--recipe.lr", "0.5"]) == 1
    assert "was trained by other keys" in capsys.readouterr().err
    weights = {p: p.stat().st_mtime_ns for p in finished.glob("out/runs/*/*/final/*")}
    assert main([*command, "--scores.side", "16"]) == 0
    assert "7 to do here" in capsys.readouterr().out
    assert weights == {p: p.stat().st_mtime_ns for p in weights}


def test_paired_differences_by_hand():
    rows = [(seed, "large", key, str(image), 30 + seed + image + gain) for seed in range(3) for key, images in
            (("a-15", 4), ("b", 2)) for image in range(images) for gain in [0]]
    index = pandas.MultiIndex.from_tuples([row[:4] for row in rows], names=["seed", "depth", "set", "image"])
    second = pandas.Series([row[4] for row in rows], index, dtype=float)
    gains = {0: 0.1, 1: 0.2, 2: 0.6}
    first = second + [gains[row[0]] + (0.3 if row[2] == "b" else 0) for row in rows]
    found = paired(first, second, "large")
    assert found["each"] == pytest.approx([0.25, 0.35, 0.75])         # each set weighs the same, however many images
    assert found["difference"] == pytest.approx(0.45)
    assert found["t"] == pytest.approx(4.302653 * np.std([0.25, 0.35, 0.75], ddof=1) / 3**0.5, abs=1e-3)
    assert found["low"] == pytest.approx(0.25) and found["high"] == pytest.approx(0.75)       # all seeds the worst, the best
    assert paired(first, second, "small") is None


def test_scores_are_those_of_the_benchmark(photos, tmp_path):
    """The noise and the PSNR of `restore bench` on the same whole images."""
    study = from_dict(Study, study_of(photos))
    images = load_images(type(study.scores)(study.scores.data, ["cbsd68-25"], 0, 0))
    model = create_model("anydepth", **NETWORK["options"], depths=DEPTHS).eval()
    checkpoint.save(model, tmp_path / "m.safetensors")
    from restore.cli import main as restore
    restore(["bench", "cbsd68", "--data", str(photos / "bench"), "--model", f"m={tmp_path / 'm.safetensors'}", "--depth", "tiny",
             "--protocol", "seeded", "-o", str(tmp_path / "bench")])
    expected = pandas.read_csv(next((tmp_path / "bench").rglob("*.csv")))
    expected = expected[expected["entry"] == "cbsd68-25"].sort_values("image")["psnr"]
    assert [row["psnr"] for row in score(model, ["tiny"], images)] == pytest.approx(list(expected), abs=1e-4)


def test_images_are_spread_and_cut_around_the_centre(photos):
    scores = from_dict(Study, study_of(photos)).scores
    images = load_images(scores)
    assert [(i.set, i.name) for i in images] == [("cbsd68-25", "00"), ("cbsd68-25", "02"), ("rain100l", "00"), ("rain100l", "01")]
    whole = cv2.imread(str(photos / "bench" / "CBSD68" / "02.png"))[..., ::-1]
    assert isinstance(images[1], Image) and np.array_equal(images[1].clean, whole[8:40, 8:40])


@pytest.mark.parametrize("change, message", [
    ({"cost": 0}, "cost: 0"), ({"base": "best"}, "base: no arm 'best'"), ({"seeds": [1, 1]}, "seeds"), ({"depths": []}, "depths"),
    ({"arms": {"a/b": {}}, "base": "a/b"}, "names a folder"), ({"arms": {"alternate": {"coast": 1}}}, "did you mean arms.alternate.cost"),
    ({"arms": {"alternate": {"cost": "half"}}}, "arms.alternate.cost"),
])
def test_a_wrong_study_is_refused_by_its_key(photos, change, message):
    with pytest.raises(RestoreError, match=message):
        from_dict(Study, study_of(photos, **change))


@pytest.mark.parametrize("arm, message", [
    ({"keys": {"branches.strategi": "sandwich"}}, "arms.odd: branches.strategi: no such key"),
    ({"keys": {"branches.strategy": "single:giant"}}, "arms.odd: branches.strategy: depth 'giant'"),
    ({"cost": "share"}, "single:DEPTH"),
])
def test_an_impossible_arm_is_told_before_anything_is_trained(photos, tmp_path, arm, message):
    study = from_dict(Study, study_of(photos, arms={"alternate": {}, "odd": arm}))
    with pytest.raises(RestoreError, match=message):
        runs(study, tmp_path / "out")


@pytest.mark.parametrize("key", ["cbsd68", "rain100l-25", "nothing", "cbsd68-loud"])
def test_an_unknown_set_is_named(photos, key):
    with pytest.raises(RestoreError, match=f"scores.sets: '{key}'"):
        load_images(from_dict(Study, study_of(photos)).scores.__class__(str(photos / "bench"), [key]))


@pytest.mark.parametrize("text", ["3", "0/2", "3/2", "a/b", "1/"])
def test_an_impossible_part_is_refused(text):
    with pytest.raises(RestoreError, match="--part"):
        studies.parse_part(text)
    assert studies.parse_part("2/3") == (2, 3)


@pytest.mark.parametrize("path", [STUDIES / "cpu.yaml", pytest.param(STUDIES / "gpu.yaml", marks=pytest.mark.slow)],
                         ids=lambda path: path.stem)
def test_shipped_studies_can_be_run(path):
    study = read(Study, path)
    assert all(phase.steps > 50 for run in runs(study, "out") if run.seed == study.seeds[0] for phase in run.phases)
