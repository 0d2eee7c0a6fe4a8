"""Exports: the bytes that went in, the same bytes every time, readable by `datasets` and by our own corpora."""

import collections
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from pathlib import Path

import cv2
import numpy as np
import pyarrow.parquet as pq
import pytest
import simplejpeg
from work_folder import measured, photo, write

import restore
from data_tools import export, jpeg_crop, patches
from data_tools.decide import decide
from data_tools.join import join
from data_tools.recipe import Export
from restore.corpus import open_corpus
from restore.errors import RestoreError


@pytest.fixture(scope="module")
def sources(tmp_path_factory):
    """Twelve photos in six folders, one of them PNG, one too small, one a duplicate."""
    root = tmp_path_factory.mktemp("sources") / "photos"
    for seed in range(12):
        write(root / f"folder{seed // 2}" / f"{seed}.{'png' if seed == 3 else 'jpg'}", photo(seed, 330, 490))
    write(root / "folder0" / "small.jpg", photo(50, 100, 100))
    (root / "folder1" / "copy.jpg").write_bytes((root / "folder0" / "0.jpg").read_bytes())
    return root


def build(sources, output, **settings):
    store, recipe = measured([sources], output, **{"export__shard_mb": 0.15, "export__val_fraction": 0.4, "workers": 1, **settings})
    join(store, recipe)
    decide(store, recipe)
    return store, recipe, export.export(store, recipe)


def listing(folder):
    return {str(p.relative_to(folder)): hashlib.sha256(p.read_bytes()).hexdigest() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture(scope="module")
def exported(sources, tmp_path_factory):
    return build(sources, tmp_path_factory.mktemp("work"), export__formats=["webdataset", "parquet", "files"])


def test_originals_are_the_bytes_that_went_in(exported, sources):
    store, _, said = exported
    truth = {p.read_bytes(): p.relative_to(sources).as_posix() for p in sorted(sources.rglob("*.*g"))
             if p.name not in ("small.jpg", "copy.jpg")}
    seen = {"webdataset": [], "parquet": [], "files": []}
    for shard in sorted(store.path("export", "webdataset").rglob("*.tar")):
        with tarfile.open(shard) as tar:
            members = tar.getmembers()
            assert all(m.mtime == 0 and m.uid == 0 for m in members)
            for image, note in zip(members[::2], members[1::2]):
                row = json.loads(tar.extractfile(note).read())
                assert Path(image.name).stem == Path(note.name).stem == row["id"]
                seen["webdataset"].append((tar.extractfile(image).read(), row))
    for shard in sorted(store.path("export", "parquet").rglob("*.parquet")):
        seen["parquet"] += [(row["image"]["bytes"], row) for row in pq.read_table(shard).to_pylist()]
    for lines in sorted(store.path("export", "files").rglob("metadata.jsonl")):
        for row in map(json.loads, lines.read_text().splitlines()):
            seen["files"].append(((lines.parent / row["file_name"]).read_bytes(), row))
    for found in seen.values():
        assert sorted(row["name"] for _, row in found) == sorted(truth.values())
        for data, row in found:
            assert truth[data] == row["name"]
            assert row["sha256"] == hashlib.sha256(data).hexdigest()
            assert row["licence"] == "licence of photos"
            assert (row["height"], row["width"]) == (330, 490)
    assert said.startswith("12 samples")


def test_split_keeps_groups_together_and_shards_are_bounded(exported):
    store, recipe, _ = exported
    sides = {}
    for split in ("train", "val"):
        for shard in (store.path("export", "parquet") / split).glob("*.parquet"):
            for row in pq.read_table(shard, columns=["group"], partitioning=None).to_pylist():
                sides.setdefault(row["group"], set()).add(split)
    assert all(len(split) == 1 for split in sides.values())
    assert {next(iter(split)) for split in sides.values()} == {"train", "val"}
    tars = sorted(store.path("export", "webdataset").rglob("*.tar"))
    assert len(tars) > 3
    for path in tars:
        with tarfile.open(path) as tar:
            assert len(tar.getmembers()) == 2 or path.stat().st_size <= recipe.export.shard_mb * 1e6


def test_val_gets_no_more_than_its_share(exported):
    store, recipe, _ = exported
    for seed in range(30):
        groups = export.val_groups(store, Export(seed=seed, val_fraction=0.2))
        assert len(groups) <= 1                           # six equal groups, and 30 % are allowed
        assert groups <= export.val_groups(store, Export(seed=seed, val_fraction=0.4))
    assert not any(export.val_groups(store, Export(seed=seed, val_fraction=0.05)) for seed in range(30))
    assert len(export.val_groups(store, Export(val_fraction=1))) == 6
    assert recipe.export.val_fraction == 0.4


def test_datasets_opens_it(exported, tmp_path):
    datasets = pytest.importorskip("datasets")
    store = exported[0]
    loaded = datasets.load_dataset(str(store.path("export")), cache_dir=str(tmp_path))
    assert set(loaded) == {"train", "validation"}
    assert sum(map(len, loaded.values())) == 12
    first = loaded["train"][0]
    assert first["image"].size == (490, 330)
    assert first["licence"] == "licence of photos"


def test_our_corpora_stream_it(exported):
    store = exported[0]
    for kind in ("webdataset", "parquet", "files"):
        counts = [open_corpus(str(store.path("export", kind) / split)).count for split in ("train", "val")]
        assert sum(counts) == 12
        assert open_corpus(str(store.path("export", kind) / "train")).read(0).shape == (330, 490, 3)


@pytest.mark.parametrize("part, kind", [("", "Tar"), ("parquet/train", "Parquet")])
def test_pretrain_streams_it_by_its_command_line(exported, tmp_path, capsys, part, kind):
    """A few steps on an export as a whole (WebDataset goes first) and on its parquet; val is not trained on."""
    from pretrain.__main__ import main
    source = exported[0].path("export", part)
    tiny = Path(__file__).parents[1] / "pretrain" / "recipes" / "tiny.yaml"
    assert main([str(tiny), "--data.source", str(source), "--data.crop", "32", "--batch_size", "2", "--steps", "3", "--warmup",
                 "1", "--log_every", "1", "--validation.side", "32", "--device", "cpu", "-o", str(tmp_path / "run")]) == 0
    assert f"final weights: {tmp_path / 'run' / 'final'}" in capsys.readouterr().out
    rows = [json.loads(line) for line in (tmp_path / "run" / "log.jsonl").read_text().splitlines()]
    losses = [value for row in rows for name, value in row.items() if name in ("loss_small", "loss_large")]
    assert len(losses) == 3 and np.isfinite(losses).all()
    assert all(row["broken_files"] == 0 for row in rows if "broken_files" in row)
    assert type(open_corpus(str(source))).__name__ == kind
    corpus = restore.load(tmp_path / "run" / "final").provenance["corpus"]
    train = exported[0].require("export")["splits"]["train"]
    assert corpus["images"] == train - 2                  # the recipe holds two back for validation


def test_card(exported):
    yaml = pytest.importorskip("yaml")
    text = exported[0].path("export", "README.md").read_text()
    front = yaml.safe_load(text.split("---")[1])
    assert front["configs"][0]["data_files"][1] == {"split": "validation", "path": "parquet/val/*.parquet"}
    assert front["license"] == "other"
    for expected in ("12 samples", "licence of photos", "duplicate", "blurry:", "parquet/train/00000.parquet"):
        assert expected in text


def test_same_bytes_again_and_in_several_processes(exported, sources, tmp_path):
    settings = {"export__formats": ["webdataset", "parquet", "files"]}
    store, _, _ = build(sources, tmp_path, workers=2, **settings)
    assert listing(store.path("export")) == listing(exported[0].path("export"))


def test_what_is_missing_is_written_again(exported, sources, tmp_path):
    store, recipe, _ = build(sources, tmp_path, export__formats=["webdataset", "parquet", "files"])
    folder, before = store.path("export"), listing(store.path("export"))
    (folder / "manifest.json").unlink()
    (folder / "shards" / "train-00001.json").unlink()                  # killed between data and note
    (folder / "webdataset" / "train" / "00000.tar").unlink()           # lost
    (folder / "parquet" / "train" / ".00002.x7.parquet").write_bytes(b"half")   # killed while writing
    (folder / "webdataset" / "train" / "00099.tar").write_bytes(b"of an export with more shards")
    untouched = (folder / "parquet" / "val" / "00000.parquet").stat().st_mtime_ns
    export.export(store, recipe)
    assert listing(folder) == before
    assert (folder / "parquet" / "val" / "00000.parquet").stat().st_mtime_ns == untouched


def test_killed_at_any_moment(sources, tmp_path):
    """kill -9 a few times while it writes; then the rest: the bytes of an unbroken run."""
    settings = {"export__formats": ["webdataset", "parquet"], "export__shard_mb": 0.05}
    store, recipe, _ = build(sources, tmp_path / "a", **settings)
    expected = listing(store.path("export"))
    again, recipe, _ = build(sources, tmp_path / "b", **settings)
    for path in sorted(again.path("export").rglob("*"), reverse=True):
        path.unlink() if path.is_file() else path.rmdir()
    code = (f"import sys; sys.path[:0] = [{str(Path(__file__).parent)!r}]\nfrom work_folder import recipes, Store\n"
            f"from data_tools import export, shards\nimport time\nadd = shards.TarWriter.add\n"
            "def slow(self, sample):\n    time.sleep(0.05)\n    add(self, sample)\nshards.TarWriter.add = slow\n"
            f"recipe = recipes.Recipe(sources=[recipes.Source(path={str(sources)!r}, name='photos')], output='', workers=1)\n"
            "recipe.export.formats, recipe.export.shard_mb, recipe.export.val_fraction = ['webdataset', 'parquet'], 0.05, 0.4\n"
            f"export.export(Store({str(tmp_path / 'b')!r}), recipe)\n")
    for count in (2, 5):
        process = subprocess.Popen([sys.executable, "-c", code], cwd=Path(__file__).parents[1], stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while len(list(again.path("export").glob("shards/*.json"))) < count and time.monotonic() < deadline:
            time.sleep(0.01)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        assert again.manifest("export") is None
    export.export(again, recipe)
    assert listing(again.path("export")) == expected


def test_a_changed_file_is_left_out_with_the_reason(tmp_path):
    source = tmp_path / "photos"
    for seed in range(3):
        write(source / f"{seed}.jpg", photo(seed))
    store, recipe = measured([source], tmp_path / "work", workers=1)
    decide(store, recipe)
    write(source / "1.jpg", photo(77))
    (source / "2.jpg").unlink()
    said = export.export(store, recipe)
    assert "1 samples" in said
    assert "2 skipped" in said
    reasons = {entry["name"]: entry["reason"] for entry in store.manifest("export")["skipped"]}
    assert reasons["photos/1.jpg"].startswith("changed")
    assert reasons["photos/2.jpg"].startswith("missing")


def test_settings_are_checked(exported):
    store, recipe, _ = exported
    for name, value in (("content", "thumbnails"), ("formats", []), ("shard_mb", 0), ("val_fraction", 2), ("patch_overlap", 1)):
        wrong = type(recipe)(sources=recipe.sources, output="", export=Export(**{name: value}))
        with pytest.raises(RestoreError, match="export: "):
            export.export(store, wrong)


# ---- patches -----------------------------------------------------------------------------------------------------

def test_patches_are_the_most_detailed_windows():
    image = np.full((256, 384), 128, np.uint8)
    noise = np.random.default_rng(0).integers(0, 256, (64, 64), dtype=np.uint8)
    image[128:192, 64:128] = noise
    image[0:64, 256:320] = noise // 16 + 120
    (x, y, best), (x2, y2, second), *rest = patches.choose(image, 64, 3)
    assert (x, y) == (64, 128)
    assert (x2, y2) == (256, 0)
    assert best > second > 0
    assert all(detail < second for _, _, detail in rest)
    assert len(patches.choose(image, 64, 10, min_detail=second)) == 2
    assert patches.choose(image, 257, 1) == []


@pytest.mark.parametrize("overlap", [0.0, 0.5])
def test_patches_overlap_no_more_than_asked(overlap):
    gray = cv2.cvtColor(photo(1), cv2.COLOR_BGR2GRAY)
    found = patches.choose(gray, 96, 50, overlap)
    for i, (x, y, _) in enumerate(found):
        assert all(max(abs(x - u), abs(y - v)) >= 96 * (1 - overlap) for u, v, _ in found[:i])
    assert len(found) > (5 if overlap == 0 else 12)


def test_patches_are_the_pixels(tmp_path, sources):
    store, _, _ = build(sources, tmp_path, export__content="patches", export__patch_size=128, export__formats=["parquet"])
    rows = [row for shard in store.path("export").rglob("*.parquet") for row in pq.read_table(shard, partitioning=None).to_pylist()]
    counts = collections.Counter(row["id"] for row in rows)
    assert len(counts) == 12
    assert set(counts.values()) <= {2, 3, 4}
    for row in rows:
        image = cv2.imread(str(sources / row["name"]))
        patch = cv2.imdecode(np.frombuffer(row["image"]["bytes"], np.uint8), cv2.IMREAD_COLOR)
        expected = image[row["y"]:row["y"] + 128, row["x"]:row["x"] + 128]
        if row["name"].endswith(".jpg"):
            data = (sources / row["name"]).read_bytes()
            expected = simplejpeg.decode_jpeg(data, "BGR")[row["y"]:row["y"] + 128, row["x"]:row["x"] + 128]
        assert np.array_equal(patch, expected)


@pytest.mark.skipif(not jpeg_crop.available(), reason="needs the system library libturbojpeg")
def test_crops_keep_the_coefficients(sources):
    """Without smooth chroma, which looks across the border, a crop decodes to exactly the pixels of the whole."""
    data = (sources / "folder0" / "0.jpg").read_bytes()
    whole = simplejpeg.decode_jpeg(data, "BGR", fastupsample=True)
    cuts = patches.cut(data, Export(content="crops", patch_size=128, patches_per_image=3))
    assert len(cuts) == 3
    for crop, suffix, x, y in cuts:
        assert suffix == "jpg"
        assert (simplejpeg.decode_jpeg(crop, "BGR", fastupsample=True) == whole[y:y + 128, x:x + 128]).all()
        assert len(crop) < len(data) / 2
    with pytest.raises(ValueError, match="multiple"):
        jpeg_crop.crop(data, 3, 0, 64, 64)


def test_crops_of_other_formats_keep_bits_and_alpha(monkeypatch):
    deep = np.random.default_rng(0).integers(0, 65536, (200, 200, 4), dtype=np.uint16)
    data = cv2.imencode(".png", deep)[1].tobytes()
    ((crop, suffix, x, y),) = patches.cut(data, Export(content="crops", patch_size=96, patches_per_image=1))
    assert suffix == "png"
    assert np.array_equal(cv2.imdecode(np.frombuffer(crop, np.uint8), cv2.IMREAD_UNCHANGED), deep[y:y + 96, x:x + 96])
    monkeypatch.setattr(jpeg_crop, "available", lambda: False)
    photo_bytes = cv2.imencode(".jpg", photo(1))[1].tobytes()
    ((crop, suffix, x, y),) = patches.cut(photo_bytes, Export(content="crops", patch_size=96, patches_per_image=1))
    assert suffix == "png"
    pixels = simplejpeg.decode_jpeg(photo_bytes, "BGR")
    assert np.array_equal(cv2.imdecode(np.frombuffer(crop, np.uint8), cv2.IMREAD_COLOR), pixels[y:y + 96, x:x + 96])


def test_turned_photos_are_cut_upright():
    from PIL import Image
    exif = Image.Exif()
    exif[0x0112] = 6
    buffer = io.BytesIO()
    Image.fromarray(photo(2)).save(buffer, "JPEG", quality=95, exif=exif)
    cuts = patches.cut(buffer.getvalue(), Export(content="crops", patch_size=256, patches_per_image=1))
    upright = np.rot90(simplejpeg.decode_jpeg(buffer.getvalue(), "BGR"), -1)
    (crop, _, x, y) = cuts[0]
    assert np.array_equal(cv2.imdecode(np.frombuffer(crop, np.uint8), cv2.IMREAD_COLOR), upright[y:y + 256, x:x + 256])
