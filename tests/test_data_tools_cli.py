"""The command line: first use, restarts after kills, additions, mistakes; the same bytes whatever happened."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest

from data_tools import measuring, recipe, scan
from data_tools.__main__ import main
from data_tools.store import Store
from restore.errors import RestoreError

ROOT = Path(__file__).resolve().parents[1]


def write_images(folder, numbers, size=(60, 80)):
    folder.mkdir(parents=True, exist_ok=True)
    for k in numbers:
        pixels = cv2.GaussianBlur(np.random.default_rng(k).integers(0, 256, (*size, 3), np.uint8), (0, 0), 1 + k % 3)
        (folder / f"{k:04d}.jpg").write_bytes(cv2.imencode(".jpg", pixels)[1].tobytes())


def measured(source, work, **changes):
    made = recipe.load(source, work, [("workers", 1), ("measure.watermarks", False), *changes.items()])
    store = Store(made.output)
    scan.scan(store, made)
    return store, measuring.run(store, made)


def digests(folder):
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
            for path in sorted(Path(folder).rglob("*")) if path.is_file()}


def test_images_that_come_later_are_measured_alone_and_the_result_is_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "PART_ROWS", 8)
    write_images(tmp_path / "in", range(0, 40, 2))
    store, (rows, new) = measured(tmp_path / "in", tmp_path / "a")
    assert (rows, new) == (20, 20) and len(store.require("measure")["parts"]) == 3
    assert measured(tmp_path / "in", tmp_path / "a")[1] == (20, 0)
    write_images(tmp_path / "in", range(1, 20, 4))                  # between the others: every part changes
    assert measured(tmp_path / "in", tmp_path / "a")[1] == (25, 5)
    assert measured(tmp_path / "in", tmp_path / "b")[1] == (25, 25)
    assert digests(tmp_path / "a") == digests(tmp_path / "b")
    changed = tmp_path / "in" / "0004.jpg"
    changed.write_bytes((tmp_path / "in" / "0005.jpg").read_bytes())
    os.utime(changed, ns=(1, 1))
    assert measured(tmp_path / "in", tmp_path / "a")[1] == (25, 1)
    (tmp_path / "in" / "0000.jpg").unlink()
    assert measured(tmp_path / "in", tmp_path / "a")[1] == (24, 0)


def test_shards_of_a_job_array_make_the_whole(tmp_path, monkeypatch):
    monkeypatch.setattr(scan, "PART_ROWS", 8)
    write_images(tmp_path / "in", range(20))
    measured(tmp_path / "in", tmp_path / "whole")
    made = recipe.load(tmp_path / "in", tmp_path / "parts", [("workers", 1), ("measure.watermarks", False)])
    parts = Store(made.output)
    scan.scan(parts, made)
    assert measuring.run(parts, made, (1, 2)) == (20, 8) and parts.manifest("measure") is None
    with pytest.raises(RestoreError, match="has not finished"):
        parts.read("measure")
    assert measuring.run(parts, made, (0, 2)) == (20, 12) and parts.manifest("measure") is not None
    assert digests(tmp_path / "parts") == digests(tmp_path / "whole")


def test_a_build_that_is_killed_again_and_again_ends_the_same(tmp_path):
    write_images(tmp_path / "in", range(600), (40, 50))
    command = [sys.executable, "-m", "data_tools", "measure", str(tmp_path / "in"), "--workers", "1",
               "--measure.watermarks", "false"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    options = {"cwd": ROOT, "env": environment}
    subprocess.run([*command, "-o", str(tmp_path / "whole")], check=True, capture_output=True, **options)
    kills = 0
    for pause in (1.0, 2.0, 2.5, 3.0, 3.5):
        process = subprocess.Popen([*command, "-o", str(tmp_path / "broken")], stderr=subprocess.DEVNULL, **options)
        time.sleep(pause)
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    subprocess.run([*command, "-o", str(tmp_path / "broken")], check=True, capture_output=True, **options)
    assert kills and digests(tmp_path / "broken") == digests(tmp_path / "whole")


def test_hostile_files_go_through_with_a_reason_each(tmp_path):
    folder = tmp_path / "in"
    write_images(folder, range(3), (300, 300))
    (folder / "empty.jpg").write_bytes(b"")
    (folder / "page.jpg").write_bytes(b"<html>gone</html>")
    good = (folder / "0000.jpg").read_bytes()
    (folder / "cut.jpg").write_bytes(good[:len(good) // 2])
    (folder / "really.png").write_bytes(good)
    huge = cv2.imencode(".png", np.zeros((8, 8), np.uint8))[1].tobytes()
    (folder / "huge.png").write_bytes(huge[:16] + (30000).to_bytes(4, "big") * 2 + huge[24:])
    store, _ = measured(folder, tmp_path / "work")
    errors = dict(zip(store.read("scan")["name"].to_pylist(), store.read("measure")["error"].to_pylist()))
    kinds = {name: (error or "").split(":")[0] for name, error in errors.items()}
    assert kinds == {"0000.jpg": "", "0001.jpg": "", "0002.jpg": "", "empty.jpg": "empty", "page.jpg": "not-an-image",
                     "cut.jpg": "truncated", "really.png": "", "huge.png": "bomb"}


PLUGIN = """
class Scorer:
    def __call__(self, rgb, row):
        if rgb.shape[0] == 61:
            raise ValueError("odd height")
        return {"mean": rgb.mean(), "tall": rgb.shape[0]}
"""


def test_plugins_add_columns_and_their_faults_stay_theirs(tmp_path):
    write_images(tmp_path / "in", range(2))
    write_images(tmp_path / "in", [9], (61, 80))
    (tmp_path / "mine.py").write_text(PLUGIN)
    store, _ = measured(tmp_path / "in", tmp_path / "work", **{"measure.plugins": [f"{tmp_path}/mine.py:Scorer"]})
    table = store.read("measure").to_pydict()
    assert table["mine.tall"] == [60, 60, None] and 100 < table["mine.mean"][0] < 160
    assert table["error"] == [None, None, "plugin: mine: ValueError: odd height"]
    with pytest.raises(RestoreError, match="no function 'missing'"):
        measured(tmp_path / "in", tmp_path / "work", **{"measure.plugins": [f"{tmp_path}/mine.py:missing"]})


def test_stages_on_a_folder_and_inspect(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_images(tmp_path / "photos", range(3), (300, 400))
    for stage in ("measure", "join", "decide"):
        assert main([stage, "photos", "-o", "out", "--workers", "1"]) == 0
    store = Store("out")
    assert store.rows("decide") == 3 and (tmp_path / "out" / "decide" / "thresholds.yaml").exists()
    assert main(["inspect", "photos/0002.jpg"]) == 0
    said = capsys.readouterr().out
    assert "rejected: blurry" in said and "sharpness < 0.96" in said.replace(" is rejected", "") and "noise" in said
    assert main(["decide", "photos", "-o", "out", "--rules.blurry", "false"]) == 0
    assert all("blurry" not in rules for rules in store.read("decide")["rules"].to_pylist())


@pytest.mark.parametrize("arguments, said", [
    (["build", "nothing-here"], "no such file or folder"),
    (["build", "missing.yaml"], "missing.yaml"),
    (["measure", ".", "--measure.timeot", "3"], "did you mean measure.timeout"),
    (["measure", ".", "--shard", "2/2"], "--shard 2/2"),
    (["decide", "."], "has not finished"),
    (["inspect", "nothing-here"], "nothing-here"),
    (["diff", "a", "b"], "a"),
    (["niqe-fit", "nothing-here", "-o", "x"], "nothing-here"),
    (["bench", "--labels", "none.csv"], "none.csv"),
])
def test_mistakes_are_one_line_and_status_one(tmp_path, monkeypatch, capsys, arguments, said):
    monkeypatch.chdir(tmp_path)
    assert main(arguments) == 1
    error = capsys.readouterr().err.strip()
    assert said in error and "Traceback" not in error


def test_unknown_commands(capsys):
    assert main(["biuld"]) == 2 and "did you mean build" in capsys.readouterr().err
    assert main([]) == 2 and main(["--help"]) == 0


def test_recipes_are_checked_key_by_key(tmp_path):
    path = tmp_path / "r.yaml"
    path.write_text("sources: [{path: photos, licens: x}]\n")
    with pytest.raises(RestoreError, match="licence"):
        recipe.load(path)
    path.write_text("sources: [{path: photos}, {path: more/photos}]\n")
    with pytest.raises(RestoreError, match="two are named 'photos'"):
        recipe.load(path)
    path.write_text("sources: [{path: photos, name: a}]\nthresholds: t.yaml\njoin: {benchmarks: [test]}\n")
    made = recipe.load(path, overrides=[("rules.blurry.sharpness", 0.8), ("rules.noisy", False)])
    assert made.rules == {"blurry.sharpness": 0.8, "noisy": False}
    assert made.sources[0].path == str(tmp_path / "photos") and made.thresholds == str(tmp_path / "t.yaml")
    assert made.join.benchmarks == [str(tmp_path / "test")] and made.output == str(tmp_path / "r-build")


def test_bench_prints_recall_by_label(tmp_path, capsys):
    write_images(tmp_path / "images", [2, 5], (300, 400))
    (tmp_path / "images" / "copy.jpg").write_bytes((tmp_path / "images" / "0002.jpg").read_bytes())
    (tmp_path / "images" / "empty.jpg").write_bytes(b"")
    (tmp_path / "labels.csv").write_text(
        "file,labels,group\nimages/0002.jpg,blurry;duplicate,a\nimages/copy.jpg,blurry;duplicate,a\n"
        "images/0005.jpg,clean,\nimages/empty.jpg,corrupt,\n")
    assert main(["bench", "--labels", str(tmp_path / "labels.csv"), "--clean", str(tmp_path / "images"),
                 "--workers", "1"]) == 0
    said = capsys.readouterr().out
    lines = {line.split()[0]: line.split()[1:] for line in said.splitlines()}
    assert lines["blurry"] == ["2", "2", "100%", "2", "100%"] == lines["duplicate"]
    assert lines["corrupt"] == ["1", "1", "100%", "1", "100%"] and lines["clean"][:3] == ["1", "1", "100%"]
    assert "4 of 4 rejected" in said
