"""``restore serve``: photos and their folders, the queue, limits, the program. test_web_browser.py has the page itself."""

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import threading

import numpy as np
import pytest
import torch
from PIL import Image as Pillow
from skimage import data
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from web_page import files, photos, save_tiny_network

from restore.cli import main
from restore.errors import RestoreError
from restore.image import read_image, to_array
from restore.web import cards
from restore.web.engine import Cancelled, Engine, Job, Queue
from restore.web.sessions import Limits, Workspace

LIMITS = Limits(upload=3_000_000, pixels=1_000_000)


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    return save_tiny_network(tmp_path_factory.mktemp("model") / "tiny.safetensors")


@pytest.fixture
def workspace(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    workspace = Workspace(LIMITS)
    yield workspace
    workspace.close()


@pytest.fixture(scope="module")
def engine(model):
    engine = Engine([model], device="cpu")
    yield engine
    engine.close()


def take(workspace, path, key="a"):
    arrived = workspace.uploads / path.name
    shutil.copy(path, arrived)
    return workspace.session(key).take(arrived, path.name)


# ---------------------------------------------------------------- photos

def test_the_result_is_the_file_that_restore_run_writes(workspace, engine, model, tmp_path):
    (tmp_path / "in").mkdir()
    for path in photos(tmp_path / "in"):
        photo = take(workspace, path)
        restorer = engine.restorer(model, "small")
        photo.restore((model, "small"), lambda pixels: engine.run(restorer, pixels, Job("")))
        assert main(["run", str(path), "-m", model, "-d", "small", "--device", "cpu"]) == 0
        expected = path.with_name(f"{path.stem}.restored{path.suffix}")
        assert photo.result.name == expected.name
        assert photo.result.read_bytes() == expected.read_bytes(), path.name
        assert read_image(photo.pictures["restored"]).pixels.shape == read_image(expected).pixels.shape    # full resolution


def test_facts_of_a_file_reach_the_page(workspace, tmp_path):
    (tmp_path / "in").mkdir()
    by_name = {path.name: path for path in photos(tmp_path / "in")}
    text = cards.facts(take(workspace, by_name["turned.jpg"]))
    assert "72 × 100" in text and "JPEG, 8 bit" in text and "colour profile, metadata" in text
    assert "16 bit" in cards.facts(take(workspace, by_name["deep.tif"]))
    assert "transparency" in cards.facts(take(workspace, by_name["alpha.png"]))
    assert "CMYK" in cards.facts(take(workspace, by_name["inks.jpg"]))


def test_a_name_is_made_harmless_and_shown_escaped(workspace, tmp_path):
    path = tmp_path / "a.jpg"
    Pillow.fromarray(data.astronaut()[:20, :20]).save(path)
    for name, kept in (("../../etc/<b>&.jfif", "_b_&.jpg"), ("ä ö.JPG", "ä ö.JPG"), ("..", "photo.jpg"), ("x" * 300 + ".jpg", None)):
        shutil.copy(path, workspace.uploads / "up")
        photo = workspace.session("a").take(workspace.uploads / "up", name)
        assert photo.source.parent.parent == workspace.session("a").folder and len(photo.source.name) < 130
        assert kept in (None, photo.source.name)
    assert "&amp;.jpg" in cards.facts(_renamed(photo, "_b_&.jpg"))


def _renamed(photo, name):
    photo.source = photo.source.with_name(name)
    return photo


def test_bad_files_are_named_and_leave_nothing(workspace, tmp_path):
    good = tmp_path / "good.jpg"
    Pillow.fromarray(data.astronaut()).save(good)
    kept = take(workspace, good)
    Pillow.new("L", (2000, 1000)).save(tmp_path / "large.png")
    bad = {"a.txt": (b"hello", "is not a photo"), "empty.png": (b"", "is empty"), "IMG.HEIC": (b"\0\0\0\x18ftypheic" + bytes(90), "HEIC"),
           "cut.jpg": (good.read_bytes()[:9000], "cannot be read"), "large.png": ((tmp_path / "large.png").read_bytes(), "limit here is 1 mega"),
           "heavy.bmp": (b"BM" + bytes(3_100_000), "limit here is 3 MB")}
    for name, (content, says) in bad.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(RestoreError, match=says) as caught:
            take(workspace, tmp_path / name)
        assert name in str(caught.value) and str(workspace.root) not in str(caught.value)
    assert workspace.session("a").photo is kept and kept.source.is_file()
    assert {path.parent for path in files(workspace.root)} == {kept.folder}


def test_spoiling_equals_restore_degrade_and_is_scored_against_the_clean_photo(workspace, engine, model, tmp_path):
    path = tmp_path / "cat.png"
    Pillow.fromarray(data.chelsea()[:80, :96]).save(path)
    photo = take(workspace, path)
    for options in (["--kind", "noise", "--sigma", "30", "--seed", "4"], ["--kind", "rain", "--rain", "heavy", "--seed", "1"],
                    ["--kind", "haze", "--haze", "outdoor", "--beta", "1.5", "--seed", "2"], ["--kind", "jpeg", "--quality", "15"]):
        photo.degrade(options)
        expected = tmp_path / photo.input.name
        assert main(["degrade", str(path), *options, "-o", str(expected)]) == 0
        assert photo.input.read_bytes() == expected.read_bytes()
        clean, spoiled = (to_array(read_image(p).pixels) for p in (path, expected))
        psnr, ssim = photo.scores["input"]
        assert psnr == pytest.approx(peak_signal_noise_ratio(clean, spoiled), abs=1e-4)
        assert ssim == pytest.approx(structural_similarity(clean, spoiled, channel_axis=-1), abs=1e-4)
    restorer = engine.restorer(model, "large")
    photo.restore((model, "large"), lambda pixels: engine.run(restorer, pixels, Job("")))
    restored = to_array(read_image(photo.result).pixels)                 # rounded, while the score is of what was not
    assert photo.scores["restored"][0] == pytest.approx(peak_signal_noise_ratio(clean, restored), abs=0.02)
    assert photo.runs[model, "large"][1] == photo.scores["restored"][0]
    assert set(photo.pictures) == {"input", "clean", "restored"}
    photo.degrade(None)
    assert photo.input == photo.source and set(photo.pictures) == {"input"} and not photo.scores


@pytest.mark.parametrize("height", [3, 7, 8, 61, 64])
def test_scores_in_bands_are_those_of_the_whole(height, monkeypatch):
    from restore.web import sessions
    monkeypatch.setattr(sessions, "_BAND", 16 * 40)
    a, b = torch.rand(2, 3, height, 40, generator=torch.Generator().manual_seed(0))
    psnr, ssim = sessions._scores(a, b)
    assert psnr == pytest.approx(peak_signal_noise_ratio(b.numpy(), a.numpy(), data_range=1), abs=1e-5)
    expected = structural_similarity(b.double().numpy(), a.double().numpy(), data_range=1, channel_axis=0) if height >= 7 else None
    assert ssim == (expected and pytest.approx(expected, abs=1e-6))
    assert sessions._scores(a, a)[0] == np.inf


# ---------------------------------------------------------------- pages

def test_pages_do_not_see_each_other_and_leave_nothing(workspace, tmp_path):
    path = tmp_path / "a.png"
    Pillow.fromarray(data.astronaut()[:30, :30]).save(path)
    first, second = take(workspace, path, "first"), take(workspace, path, "second")
    one, two = workspace.session("first"), workspace.session("second")
    picture = first.pictures["input"]
    assert one.find(picture.parent.name, picture.name) == picture and two.find(picture.parent.name, picture.name) is None
    assert one.find(picture.parent.name, "../alive") is None
    assert workspace.by_token(one.token) is one and workspace.by_token("x") is None
    take(workspace, path, "first")
    assert not first.folder.exists()                                      # replaced
    workspace.end("first")
    assert not one.folder.exists() and workspace.by_token(one.token) is None and second.source.is_file()
    (workspace.uploads / "old").write_bytes(b"x")
    (workspace.uploads / "new").write_bytes(b"x")
    os.utime(workspace.uploads / "old", (0, 0))
    workspace.sweep_uploads()
    assert [p.name for p in workspace.uploads.iterdir()] == ["new"]
    workspace.close()
    assert not workspace.root.exists()


def test_what_a_killed_program_left_is_deleted_by_the_next(tmp_path, monkeypatch):
    pytest.importorskip("fcntl")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = ("import os, signal, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
            "from restore.web.sessions import Limits, Workspace\n"
            "w = Workspace(Limits(1, 1)); (w.uploads / 'photo').write_bytes(b'x'); os.kill(os.getpid(), signal.SIGKILL)")
    assert subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False).returncode == -signal.SIGKILL
    assert [p.name for p in files(tmp_path)] == ["photo"]
    living = Workspace(LIMITS)
    assert files(tmp_path) == [] and living.root.is_dir()
    other = Workspace(LIMITS)                                             # leaves the living one alone
    assert living.root.is_dir()
    other.close()
    living.close()
    assert not list(tmp_path.glob("anydepth*"))


# ---------------------------------------------------------------- the queue and the engine

def test_work_is_done_in_order_and_tells_how_many_come_before():
    queue, gate, order = Queue(), threading.Event(), []
    jobs = [Job(str(number), expected=number + 1) for number in range(4)]
    queue.submit(jobs[0], gate.wait)
    for job in jobs[1:]:
        queue.submit(job, order.append, job.what)
    assert [len(queue.ahead(job)[0]) for job in jobs] == [0, 1, 2, 3]
    assert queue.ahead(jobs[3])[1] == pytest.approx(1 + 2 + 3, abs=0.9)   # of the first some has passed
    jobs[2].cancel()
    assert queue.ahead(jobs[3])[0] == [jobs[0], jobs[1]]
    gate.set()
    jobs[3].future.result(timeout=30)
    assert order == ["1", "3"] and jobs[2].cancelled
    queue.close()


def test_what_comes_before_is_told():
    job, photo, timing = Job("mine"), Job("a photo"), Job("the network", timing=True)
    assert "1 photo comes before yours, about 3 s" in cards.progress(job, [timing, photo], 3)
    assert "2 photos come before yours" in cards.progress(job, [photo, photo])
    assert "timed first" in cards.progress(job, [timing])
    assert "0 %" in cards.progress(job)


def test_progress_follows_the_work_of_tiles_of_different_size(engine, model):
    restorer = engine.restorer(model, "small").at("small")
    restorer.tile = lambda height, width: (64, 96)
    job, seen = Job("test"), {}
    check = job.check
    job.check = lambda: (seen.setdefault(job.tile, job.fraction), check())
    engine.run(restorer, torch.rand(3, 72, 96, generator=torch.Generator().manual_seed(0)), job)
    assert seen[2] == pytest.approx(0.5, abs=0.05)                        # rows 0 to 64, then 8 to 72: two equal parts of the work


def test_progress_grows_to_one_over_tiles_and_the_result_is_the_restorers(engine, model):
    restorer = engine.restorer(model, "small").at("small")
    restorer.tile = lambda height, width: (64, 64)
    pixels = torch.rand(3, 96, 128, generator=torch.Generator().manual_seed(0))
    job, seen = Job("test"), []
    check = job.check
    job.check = lambda: (seen.append((job.fraction, job.tile)), check())
    out = engine.run(restorer, pixels, job)
    assert torch.equal(out, restorer.restore(pixels))
    fractions = [fraction for fraction, _ in seen]
    assert job.tiles > 4 and fractions == sorted(fractions) and fractions[-1] == pytest.approx(1)
    assert {tile for _, tile in seen} == set(range(1, job.tiles + 1))
    assert len(set(fractions)) > 5 * job.tiles                            # also within a tile


def test_cancelling_ends_the_network_between_two_blocks(engine, model):
    job, calls = Job("test"), []
    check = job.check

    def cancel_at_the_third():
        calls.append(1)
        if len(calls) == 3:
            job.cancel()
        check()

    job.check = cancel_at_the_third
    with pytest.raises(Cancelled):
        engine.run(engine.restorer(model, "large"), torch.rand(3, 64, 64), job)
    assert len(calls) == 3
    engine.run(engine.restorer(model, "large"), torch.rand(3, 64, 64), Job("next"))     # and the next one is not disturbed


def test_depths_costs_and_the_time_budget(engine, model, tmp_path, monkeypatch):
    from restore.depth import count_macs
    monkeypatch.setenv("ANYDEPTH_CACHE", str(tmp_path))
    assert engine.depths(model) == ["small", "large"]
    network = engine.restorer(model, None).model
    assert [row.seconds for row in engine.costs(model, 100, 150)] == [None, None]
    engine.measure(model)
    small, large = engine.costs(model, 100, 150)
    assert (small.macs, large.macs) == tuple(count_macs(network, 100, 150, name) for name in ("small", "large"))
    assert large.repeats == "2,2,2,2" and small.seconds > 0 and large.seconds > 0
    monkeypatch.setattr("restore.budget.measured_seconds", lambda restorer: {(1, 1, 1, 1): 1, (2, 2, 2, 2): 2}[restorer.depth])
    assert engine.choose(model, 3, 256, 256) == "large" and engine.choose(model, 1.5, 256, 256) == "small"
    with pytest.raises(RestoreError, match="within 0.5 s; the fastest, small, takes about"):
        engine.choose(model, 0.5, 256, 256)


# ---------------------------------------------------------------- the program

def test_wrong_options_are_told_before_anything_is_served(capsys, tmp_path):
    for options, says in ((["--port", "99999"], "--port 99999"), (["--max-pixels", "0"], "--max-pixels"),
                          (["--max-upload", "much"], "much"), (["--max-upload", "unlimited"], "--max-upload"),
                          (["-m", str(tmp_path / "none.safetensors")], "none.safetensors: no such file")):
        assert main(["serve", *options]) == 1
        assert says in capsys.readouterr().err


def test_a_taken_port_is_told(capsys):
    import socket
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        assert main(["serve", "--port", str(port)]) == 1
    assert f"--port {port}" in capsys.readouterr().err


def test_without_gradio_the_extra_is_named(capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "gradio", None)
    assert main(["serve", "--port", "0"]) == 1
    assert "anydepth[web]" in capsys.readouterr().err
