"""``restore run``: which files, which outputs, what is refused before work, what survives a kill."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from restore.checkpoint import save
from restore.cli import main
from restore.commands.run import work_list
from restore.errors import RestoreError
from restore.image import read_image, to_array
from restore.models import create_model
from restore.restorer import Restorer


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("model") / "tiny.safetensors"
    save(create_model("dynet", width=8, heads=(1, 1, 1, 1), prompt_channels=(8, 8, 8), prompt_sizes=(8, 4, 2),
                      depths={"small": (1, 1, 1, 1), "large": (2, 2, 2, 2)}), path)
    return str(path)


def picture(path, size=(20, 30), seed=0, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 256, (*size, 3), np.uint8)
    Pillow.fromarray(array).save(path, **options)
    return path


def tree(folder):
    return sorted(p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file())


# ---------------------------------------------------------------- the work list

def test_names_and_structure(tmp_path):
    for name in ("a.png", "sub/b.jpg", "sub/deep/c.tif"):
        picture(tmp_path / "in" / name)
    out = tmp_path / "out"
    assert [t for _, t in work_list([tmp_path / "in"], out)] == [out / "a.png", out / "sub/b.jpg", out / "sub/deep/c.tif"]
    assert [t.name for _, t in work_list([tmp_path / "in"])] == ["a.restored.png", "b.restored.jpg", "c.restored.tif"]
    assert work_list([tmp_path / "in/a.png"], out / "new.webp")[0][1] == out / "new.webp"
    assert work_list([tmp_path / "in/a.png"], out)[0][1] == out / "a.png"
    assert [t for _, t in work_list([str(tmp_path / "in/**/*.???")], out)] == [out / "a.png", out / "b.jpg", out / "c.tif"]
    assert len(work_list([tmp_path / "in", tmp_path / "in/a.png"], out)) == 3


def test_results_are_no_inputs_again_unless_named(tmp_path):
    picture(tmp_path / "a.png")
    picture(tmp_path / "a.restored.png")
    picture(tmp_path / "out/a.png")
    assert [p.name for p, _ in work_list([tmp_path / "a.png", tmp_path / "a.restored.png"], tmp_path / "x")] == \
        ["a.png", "a.restored.png"]
    assert work_list([tmp_path], tmp_path / "out") == [(tmp_path / "a.png", tmp_path / "out/a.png")]
    assert work_list([tmp_path / "out"], tmp_path / "out2") == [(tmp_path / "out/a.png", tmp_path / "out2/a.png")]


def test_what_cannot_end_well_is_refused_before_work(tmp_path):
    a, b = picture(tmp_path / "1/a.png"), picture(tmp_path / "2/a.png")
    (tmp_path / "empty").mkdir()
    (tmp_path / "note.txt").write_text("no image")
    for inputs, output, message in (
            ([a, b], tmp_path / "out", "would both become"), ([a], tmp_path / "1", "replace an input"),
            ([a], a, "replace an input"), ([tmp_path / "1"], tmp_path / "1", "replace an input|no images"),
            ([a], tmp_path / "b.gif", "not an image format"), ([a, b], a, "is a file"),
            ([tmp_path / "empty"], None, "no images"), ([tmp_path / "none*.png"], None, "no file matches"),
            ([tmp_path / "note.txt"], None, "not an image format")):
        with pytest.raises(RestoreError, match=message):
            work_list(inputs, output)
    assert tree(tmp_path) == ["1/a.png", "2/a.png", "note.txt"]


def test_links_to_one_file_are_one_place(tmp_path):
    a = picture(tmp_path / "a.png")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.png").symlink_to(a)
    with pytest.raises(RestoreError, match="replace an input"):
        work_list([a], tmp_path / "out")


# ---------------------------------------------------------------- the command

def test_restores_a_tree_and_goes_on_after_a_bad_file(tmp_path, model, capsys):
    picture(tmp_path / "in/a.png")
    picture(tmp_path / "in/sub/b.jpg", quality=95, dpi=(300, 300))
    (tmp_path / "in/bad.png").write_bytes((tmp_path / "in/a.png").read_bytes()[:500])
    (tmp_path / "in/fake.jpg").write_text("not at all")
    (tmp_path / "in/zero.png").write_bytes(b"")
    out = tmp_path / "out"
    assert main(["run", str(tmp_path / "in"), "-o", str(out), "-m", model, "-d", "small"]) == 1
    err = capsys.readouterr().err
    assert tree(out) == ["a.png", "sub/b.jpg"]
    assert all(name in err for name in ("bad.png", "fake.jpg", "zero.png: is empty", "3 of 5 failed", "dynet, depth 1,1,1,1"))
    assert "Traceback" not in err
    expected = Restorer(model, depth="small").restore(read_image(tmp_path / "in/a.png").pixels)
    np.testing.assert_array_equal(np.asarray(Pillow.open(out / "a.png")), to_array(expected))
    assert Pillow.open(out / "sub/b.jpg").info["dpi"] == (300, 300)


def test_depth_changes_the_result_and_a_wrong_one_is_refused(tmp_path, model, capsys):
    a = picture(tmp_path / "a.png")
    for depth in ("small", "large", "1,1,1,2"):
        assert main(["run", str(a), "-o", str(tmp_path / f"{depth[-1]}.png"), "-m", model, "-d", depth]) == 0
    assert len({(tmp_path / name).read_bytes() for name in ("l.png", "e.png", "2.png")}) == 3
    capsys.readouterr()
    assert main(["run", str(a), "-m", model, "-d", "huge"]) == 1
    assert "huge" in capsys.readouterr().err
    assert not (tmp_path / "a.restored.png").exists()


def test_existing_outputs(tmp_path, model, capsys):
    a = picture(tmp_path / "a.png")
    picture(tmp_path / "b.png", seed=1)
    done = tmp_path / "a.restored.png"
    done.write_bytes(b"mine")
    run = ["run", str(tmp_path), "-m", model]
    assert main(run) == 1
    assert "--resume" in capsys.readouterr().err
    assert not (tmp_path / "b.restored.png").exists()
    assert main([*run, "--resume"]) == 0
    assert done.read_bytes() == b"mine"
    assert (tmp_path / "b.restored.png").exists()
    assert main([*run, "--resume"]) == 0
    assert main([*run, "--overwrite"]) == 0
    assert Pillow.open(done).size == Pillow.open(a).size
    assert tree(tmp_path) == ["a.png", "a.restored.png", "b.png", "b.restored.png"]


def test_what_a_killed_run_left_is_swept_on_resume(tmp_path, model):
    picture(tmp_path / "a[1].png")
    old, new, other = (tmp_path / name for name in (".a[1].restored.abcdefgh.png", ".a[1].restored.12345678.png", ".keep.png"))
    for path in (old, new, other):
        path.write_bytes(b"half")
    for path in (old, other):
        os.utime(path, (1, 1))
    assert main(["run", str(tmp_path), "-m", model, "--resume"]) == 0
    assert tree(tmp_path) == [".a[1].restored.12345678.png", ".keep.png", "a[1].png", "a[1].restored.png"]


def test_alpha_that_the_output_cannot_hold_is_reported(tmp_path, model, capsys):
    Pillow.new("RGBA", (9, 9), (1, 2, 3, 4)).save(tmp_path / "a.png")
    assert main(["run", str(tmp_path / "a.png"), "-o", str(tmp_path / "b.jpg"), "-m", model]) == 1
    assert "transparency" in capsys.readouterr().err
    assert tree(tmp_path) == ["a.png"]


def test_a_full_disk_stops_the_run(tmp_path, model, capsys, monkeypatch):
    for k in range(3):
        picture(tmp_path / f"in/{k}.png", seed=k)

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("restore.codecs.png.write", full)
    assert main(["run", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", model]) == 1
    err = capsys.readouterr().err
    assert "Stopped after 0 of 3" in err
    assert "--resume" in err
    assert tree(tmp_path / "out") == []
    monkeypatch.undo()
    monkeypatch.setattr("restore.files.shutil.disk_usage", lambda _: type("Usage", (), {"free": 10}))
    assert main(["run", str(tmp_path / "in"), "-o", str(tmp_path / "out"), "-m", model]) == 1
    assert "Stopped after 0 of 3" in capsys.readouterr().err


def test_tiles_and_other_notes_are_told(tmp_path, model, capsys, monkeypatch):
    monkeypatch.setattr(Restorer, "_affordable", lambda *_: 64 * 64)
    Pillow.fromarray(np.zeros((60, 120, 4), np.uint8), "CMYK").save(tmp_path / "a.jpg")
    assert main(["run", str(tmp_path / "a.jpg"), "-m", model]) == 0
    err = capsys.readouterr().err
    assert "restored in 3 tiles of 64 x 60" in err
    assert "CMYK" in err


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="kill -9 needs a POSIX system")
def test_killed_in_mid_run_and_resumed(tmp_path, model):
    for k in range(8):
        picture(tmp_path / f"in/{k}.png", size=(120, 120), seed=k)
    command = [sys.executable, "-m", "restore", "run", str(tmp_path / "in"), "-m", model, "-d", "small", "-o"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    out = tmp_path / "out"
    process = subprocess.Popen([*command, str(out)], env=environment, stderr=subprocess.DEVNULL, start_new_session=True)
    try:
        deadline = time.monotonic() + 120
        while process.poll() is None and time.monotonic() < deadline and not list(out.glob("[0-9].png")):
            time.sleep(0.01)
    finally:
        process.kill()
        process.wait()
    finished = list(out.glob("[0-9].png"))
    assert 1 <= len(finished) < 8
    stamps = {p: p.stat().st_mtime_ns for p in finished}
    for path in finished:
        Pillow.open(path).load()
    result = subprocess.run([*command, str(out), "--resume"], env=environment, check=True, capture_output=True, text=True)
    assert f"{len(finished)} finished before, {8 - len(finished)} to do" in result.stderr
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in stamps.items())
    restorer = Restorer(model, depth="small")
    for k in range(8):
        expected = to_array(restorer.restore(read_image(tmp_path / f"in/{k}.png").pixels))
        assert np.abs(np.asarray(Pillow.open(out / f"{k}.png")).astype(int) - expected).max() <= 1


def test_run_imports_no_training_and_starts_soon(tmp_path, model):
    picture(tmp_path / "a.png")
    code = ("import sys; from restore.cli import main; status = main(sys.argv[1:]);"
            "print([m for m in ('timm', 'datasets', 'gradio', 'accelerate', 'skimage', 'torchvision') if m in sys.modules]);"
            "sys.exit(status)")
    result = subprocess.run([sys.executable, "-c", code, "run", str(tmp_path / "a.png"), "-m", model], check=True,
                            capture_output=True, text=True)
    assert result.stdout.strip() == "[]"
    assert Path(tmp_path / "a.restored.png").exists()
