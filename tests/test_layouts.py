"""The layouts of paired sets, each as a hand-made tree of tiny files with the names that the published sets have."""

import json
import os
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
from PIL import Image

from restore.errors import RestoreError
from restore.layouts import find_clean, find_pairs, find_sets, pair_folders

SHARED = Path(__file__).resolve().parents[2] / "shared"


def plant(root, *names, size=(4, 3)):
    """Write an image under each name below ``root``; returns ``root``."""
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", size).save(path)
    return root


def partners(found):
    """{degraded: clean} by paths below the root."""
    return {p.degraded.relative_to(found.root).as_posix(): p.clean.relative_to(found.root).as_posix() for p in found.pairs}


# What lies there, and which belongs to which; None where the names tell no task.
LAYOUTS = {
    "gUNet": ("dehaze", ["GT/1.png", "GT/2.png", "hazy/1.png", "hazy/2.png"],
              {"hazy/1.png": "GT/1.png", "hazy/2.png": "GT/2.png"}),
    "SOTS indoor": ("dehaze", ["clear/1400.png", "hazy/1400_1.png", "hazy/1400_10.png"],
                    {"hazy/1400_1.png": "clear/1400.png", "hazy/1400_10.png": "clear/1400.png"}),
    "SOTS outdoor": ("dehaze", ["gt/0025.png", "hazy/0025_0.8_0.2.jpg"], {"hazy/0025_0.8_0.2.jpg": "gt/0025.png"}),
    "a full name before its stem": ("dehaze", ["clear/0025.jpg", "clear/0025_heavy.jpg", "hazy/0025_heavy.jpg", "hazy/0025_light.jpg"],
                                    {"hazy/0025_heavy.jpg": "clear/0025_heavy.jpg", "hazy/0025_light.jpg": "clear/0025.jpg"}),
    "the longest stem": ("dehaze", ["GT/city_4.png", "GT/city.png", "hazy/city_4_0.8.png", "hazy/city_1.png"],
                         {"hazy/city_4_0.8.png": "GT/city_4.png", "hazy/city_1.png": "GT/city.png"}),
    "OTS in parts": ("dehaze", ["clear/0001.jpg", "hazy/part1/0001_0.8_0.04.jpg", "hazy/part2/0001_1_0.2.jpg"],
                     {"hazy/part1/0001_0.8_0.04.jpg": "clear/0001.jpg", "hazy/part2/0001_1_0.2.jpg": "clear/0001.jpg"}),
    "NH-HAZE": ("dehaze", ["01_GT.png", "01_hazy.png", "02_GT.png", "02_hazy.png"],
                {"01_hazy.png": "01_GT.png", "02_hazy.png": "02_GT.png"}),
    "Rain100L, one folder": ("derain", ["norain-001.png", "rain-001.png"], {"rain-001.png": "norain-001.png"}),
    "Rain100H, rainy beside": ("derain", ["norain-001.png", "rainy/rain-001.png"], {"rainy/rain-001.png": "norain-001.png"}),
    "Rain100L as published": ("derain", ["norain/norain-001.png", "rain/X2/norain-001x2.png"],
                              {"rain/X2/norain-001x2.png": "norain/norain-001.png"}),
    "Rain12": ("derain", ["groundtruth/001_GT.png", "rainy/001_in.png"], {"rainy/001_in.png": "groundtruth/001_GT.png"}),
    "Rain1400": ("derain", ["ground_truth/901.jpg", "rainy_image/901_1.jpg", "rainy_image/901_14.jpg"],
                 {"rainy_image/901_1.jpg": "ground_truth/901.jpg", "rainy_image/901_14.jpg": "ground_truth/901.jpg"}),
    "LOL": ("lowlight", ["our485/low/2.png", "our485/high/2.png", "eval15/low/1.png", "eval15/high/1.png"],
            {"our485/low/2.png": "our485/high/2.png", "eval15/low/1.png": "eval15/high/1.png"}),
    "LOLv2": ("lowlight", ["Low/low00001.png", "Normal/normal00001.png"], {"Low/low00001.png": "Normal/normal00001.png"}),
    "GoPro": ("deblur", [f"train/{scene}/{side}/000001.png" for scene in ("A", "B") for side in ("blur", "blur_gamma", "sharp")],
              {f"train/{scene}/blur/000001.png": f"train/{scene}/sharp/000001.png" for scene in ("A", "B")}),
    "GoPro turned round": ("deblur", [f"{side}/{scene}/000001.png" for scene in ("A", "B") for side in ("blur", "sharp")],
                           {f"blur/{scene}/000001.png": f"sharp/{scene}/000001.png" for scene in ("A", "B")}),
    "PolyU's crops": ("denoise", ["CroppedImages/Canon5D_plug_11_mean.JPG", "CroppedImages/Canon5D_plug_11_real.JPG"],
                      {"CroppedImages/Canon5D_plug_11_real.JPG": "CroppedImages/Canon5D_plug_11_mean.JPG"}),
    "SIDD": ("denoise", ["scene/GT_SRGB_010.PNG", "scene/NOISY_SRGB_010.PNG"],
             {"scene/NOISY_SRGB_010.PNG": "scene/GT_SRGB_010.PNG"}),
    "noisy and clean": ("denoise", ["clean/a b.JPG", "noisy/a b.JPG"], {"noisy/a b.JPG": "clean/a b.JPG"}),
    "lq and gt": (None, ["lq/a.png", "gt/a.webp"], {"lq/a.png": "gt/a.webp"}),
    "PromptIR's test sets": ("derain", ["derain/Rain100L/input/1.png", "derain/Rain100L/target/1.png"],
                             {"derain/Rain100L/input/1.png": "derain/Rain100L/target/1.png"}),
    "PromptIR's training rain": ("derain", ["Derain/rainy/rain-1.png", "Derain/gt/norain-1.png"],
                                 {"Derain/rainy/rain-1.png": "Derain/gt/norain-1.png"}),
    "PromptIR's training haze": ("dehaze", ["Dehaze/synthetic/part1/0025_0.8_0.2.jpg", "Dehaze/original/0025.jpg"],
                                 {"Dehaze/synthetic/part1/0025_0.8_0.2.jpg": "Dehaze/original/0025.jpg"}),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_layout(tmp_path, name):
    task, files, expected = LAYOUTS[name]
    found = find_pairs(plant(tmp_path / "set", *files))
    assert partners(found) == expected
    assert found.task == task
    assert not found.problems()
    assert [p.name for p in found.pairs] == sorted({p.name for p in found.pairs})      # in order, each name once


def test_a_tree_with_every_task(tmp_path):
    root = plant(tmp_path, *(f for name in LAYOUTS if name.startswith("PromptIR's tr") for f in LAYOUTS[name][1]),
                 "Denoise/0001.bmp", "Denoise/100007.jpg")
    assert {s.task: len(s.pairs) for s in find_sets(root)} == {"derain": 1, "dehaze": 1}
    assert [p.name for p in find_pairs(root, task="dehaze").pairs] == ["part1/0025_0.8_0.2"]
    assert "derain" in find_pairs(root, task="dehaze").skipped[0]
    assert [p.name for p in find_clean(root)] == ["0001.bmp", "100007.jpg"]
    with pytest.raises(RestoreError, match="no pairs for deblur(.|\n)*not used(.|\n)*layouts understood"):
        find_pairs(root, task="deblur")


def test_splits_are_kept_apart(tmp_path):
    root = plant(tmp_path, *LAYOUTS["LOL"][1])
    assert [p.name for p in find_pairs(root, split="train").pairs] == ["2"]
    assert [p.name for p in find_pairs(root, split="test").pairs] == ["1"]
    assert len(find_pairs(root).pairs) == 2
    # the folder that the user points at was chosen, whatever its name
    assert [p.name for p in find_pairs(root / "eval15", split="train").pairs] == ["1"]


def test_folders_named_like_a_side_that_hold_whole_sets(tmp_path):
    root = plant(tmp_path, "clean/photos/7.png", "rain/one/rainy/1.png", "rain/one/clean/1.png", "haze/hazy/2_1.png", "haze/clear/2.png")
    assert {(s.task, p.name) for s in find_sets(root) for p in s.pairs} == {("derain", "1"), ("dehaze", "2_1")}


def test_what_is_wrong_is_named(tmp_path):
    root = plant(tmp_path, "hazy/1_1.png", "hazy/2_1.png", "hazy/5_1.png", "hazy/6_1.png", "hazy/6_1.jpg", "GT/1.png", "GT/3.png",
                 "GT/5.png", "GT/6.png")
    plant(root, "GT/4.png", size=(9, 9))
    plant(root, "hazy/4_2.png", size=(9, 8))
    (root / "GT/5.png").write_bytes(b"not an image")
    found = find_pairs(root)
    assert partners(found) == {"hazy/1_1.png": "GT/1.png", "hazy/6_1.jpg": "GT/6.png"}
    assert found.missing == [root / "hazy/2_1.png"]
    assert found.extra == [root / "GT/3.png"]
    assert found.duplicates == [root / "hazy/6_1.png"]
    assert [path for path, _ in found.unreadable] == [root / "GT/5.png"]
    assert [(p.name, a, b) for p, a, b in found.unequal] == [("4_2", (8, 9), (9, 9))]
    report = str(found)
    for words in ("2 pairs, dehaze, hazy/ + GT/", "hazy/2_1.png", "GT/3.png", "hazy/6_1.png", "GT/5.png",
                  "hazy/4_2.png is 8x9 and", "GT/4.png 9x9"):
        assert words in report
    assert len(find_pairs(root, sizes=False).pairs) == 4           # headers are read only if wanted


def test_indoor_reside_as_released(tmp_path):
    """hazy 620x460 and clear 640x480: the clear image has a white border of ten pixels."""
    plant(tmp_path, "hazy/1400_1.png", size=(62, 46))
    plant(tmp_path, "clear/1400.png", size=(82, 66))
    pair, = find_pairs(tmp_path).pairs
    assert pair.border == 10


def test_photos_that_only_sound_like_pairs(tmp_path):
    root = plant(tmp_path, "rain_forest.jpg", "clear_lake.jpg", "sea.jpg")
    assert find_sets(root) == []
    assert len(find_clean(root)) == 3


def test_an_ambiguous_partner_is_no_partner(tmp_path):
    root = plant(tmp_path, "rainy/1.png", "clean/a/1.png", "clean/b/1.png")
    with pytest.raises(RestoreError, match="rainy/1.png"):
        find_pairs(root)


def test_two_folders(tmp_path):
    plant(tmp_path, "before/a.png", "before/b.png", "after/a.tif", "after/c.png")
    found = pair_folders(tmp_path / "before", tmp_path / "after", task="derain")
    assert [(p.name, p.clean.name, p.task) for p in found.pairs] == [("a", "a.tif", "derain")]
    assert [p.name for p in found.missing] == ["b.png"] and [p.name for p in found.extra] == ["c.png"]
    plant(tmp_path, "other/z.png")
    with pytest.raises(RestoreError, match="belong together"):
        pair_folders(tmp_path / "before", tmp_path / "other")
    with pytest.raises(RestoreError, match="nowhere: no such folder"):
        pair_folders(tmp_path / "nowhere", tmp_path / "after")


ROWS = [{"degraded": "x/1.png", "clean": "y/one.png", "task": "derain"}, {"degraded": "x/2.png", "clean": "y/two.png", "task": "dehaze"},
        {"degraded": "x/3.png", "clean": "y/gone.png", "task": "derain"}]


@pytest.mark.parametrize("suffix", [".csv", ".jsonl", ".parquet"])
def test_manifest(tmp_path, suffix):
    plant(tmp_path, "x/1.png", "x/2.png", "x/3.png", "y/one.png", "y/two.png")
    path = tmp_path / f"pairs{suffix}"
    if suffix == ".csv":
        path.write_text("\n".join([",".join(ROWS[0]), *(",".join(row.values()) for row in ROWS)]))
    elif suffix == ".jsonl":
        path.write_text("\n".join(map(json.dumps, ROWS)))
    else:
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(ROWS), path)
    for place in (path, tmp_path):                                # the file, or the folder that holds it
        found = find_pairs(place)
        assert [(p.name, p.clean.name, p.task) for p in found.pairs] == [("x/1", "one.png", "derain"), ("x/2", "two.png", "dehaze")]
        assert found.missing == [tmp_path / "y/gone.png"]
    assert [p.name for p in find_pairs(path, task="dehaze").pairs] == ["x/2"]


@pytest.mark.parametrize("text, words", [
    ("input,nothing\na,b\n", "columns degraded and clean, has input, nothing"), ("degraded,clean\nx/1.png,\n", "row 1 lacks clean"),
    ("degraded,clean,task\nx,y,derian\n", "row 1 has the task 'derian'; there are denoise"), ("", "empty")])
def test_wrong_manifests(tmp_path, text, words):
    path = tmp_path / "list.csv"
    path.write_text(text)
    with pytest.raises(RestoreError, match=words) as raised:
        find_pairs(path)
    assert str(path) in str(raised.value)


def test_a_manifest_of_something_else_is_passed_over(tmp_path):
    root = plant(tmp_path, "noisy/1.png", "clean/1.png")
    (root / "manifest.csv").write_text("image,width\nclean/1.png,4\n")
    assert len(find_pairs(root).pairs) == 1


def test_nothing_there(tmp_path):
    with pytest.raises(RestoreError, match="no pairs found(.|\n)*PromptIR"):
        find_pairs(tmp_path)
    with pytest.raises(RestoreError, match="no such folder"):
        find_pairs(tmp_path / "gone")
    with pytest.raises(RestoreError, match="no images"):
        find_clean(tmp_path)


def test_clean_sides_of_pairs(tmp_path):
    root = plant(tmp_path, "hazy/1_1.png", "hazy/1_2.png", "clear/1.png")
    assert find_clean(root) == [root / "clear/1.png"]             # once, and no hazy image


def test_linked_and_circular_folders(tmp_path):
    plant(tmp_path, "store/hazy/1.png", "store/GT/1.png")
    (tmp_path / "sets").mkdir()
    os.symlink(tmp_path / "store", tmp_path / "sets/indoor", target_is_directory=True)
    os.symlink(tmp_path / "sets", tmp_path / "store/again", target_is_directory=True)
    assert [p.name for p in find_pairs(tmp_path / "sets").pairs] == ["1"]


@pytest.mark.skipif(not (SHARED / "data").is_dir(), reason="needs the image data beside the checkout")
def test_the_sets_beside_the_checkout():
    counts = {"train/rain": ("derain", 40), "train/haze": ("dehaze", 40), "bench/derain/rain100l": ("derain", 34),
              "bench/dehaze/sots_indoor": ("dehaze", 15), "bench/dehaze/reside_outdoor": ("dehaze", 10),
              "bench/denoise_real/polyu": ("denoise", 48)}
    for folder, (task, count) in counts.items():
        found = find_pairs(SHARED / "data" / folder)
        assert (found.task, len(found.pairs), found.problems()) == (task, count, []), folder
    assert len(find_clean(SHARED / "data/train/clean")) == 421
