"""Exact resume: killed with SIGKILL anywhere and gone on with, a run ends with the bits of an unbroken one."""

import errno
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file

from pretrain.recipe import Recipe
from pretrain.run import run
from restore.errors import RestoreError
from restore.recipe import from_dict, to_dict
from restore.resume import RunFolder, damage
from restore.settings import require_same

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("one_thread")
STEPS = 15


@pytest.fixture(scope="module")
def recipe(tmp_path_factory):
    """A network of a few thousand weights on ten small images, one of them broken; branches, noise, JPEG and masks are
    drawn.
    """
    photos = tmp_path_factory.mktemp("photos")
    for number in range(10):
        image = np.random.default_rng(number).integers(0, 256, (24, 30, 3), dtype=np.uint8)
        cv2.imwrite(str(photos / f"{number}.png"), cv2.GaussianBlur(image, (5, 5), 2))
    (photos / "3.png").write_bytes(b"\x89PNG broken")
    return from_dict(
        Recipe,
        {
            "steps": STEPS,
            "batch_size": 4,
            "workers": 0,
            "warmup": 3,
            "ema": 0.9,
            "log_every": 1,
            "checkpoint_every": 4,
            "validate_every": 6,
            "device": "cpu",
            "weight_decay": 0.01,
            "model": {
                "options": {"width": 8, "heads": [1, 1, 1, 1], "refinement": 1},
                "depths": {"small": [1, 1, 1, 1], "large": [1, 2, 1, 1]},
            },
            "data": {"source": str(photos), "crop": 16},
            "masking": {"patch": [2, 4]},
            "validation": {"last": 1},
        },
    )


@pytest.fixture(scope="module")
def unbroken(recipe, tmp_path_factory):
    out = tmp_path_factory.mktemp("unbroken") / "run"
    run(recipe, out)
    return out


def changed(recipe, **values):
    return from_dict(Recipe, {**to_dict(recipe), **values})


def assert_same_end(out, reference, step=STEPS):
    """Final weights, and everything in the last checkpoint, equal to the bit; the log has each step once."""
    names = ["final/model.safetensors"]
    names += [f"checkpoints/step-{step:08d}/{part}.safetensors" for part in ("model", "ema", "optimizer")]
    for name in names:
        ours, theirs = load_file(out / name), load_file(reference / name)
        assert ours.keys() == theirs.keys() and len(ours) > 10
        for key in ours:
            same = np.array_equal(ours[key].numpy().view(np.uint32), theirs[key].numpy().view(np.uint32))
            assert same, f"{name}: {key} differs"
    rows, expected = read_log(out), read_log(reference)
    assert [(row["step"], row.get("loss_small"), row.get("loss_large"), row.get("psnr")) for row in rows] == \
        [(row["step"], row.get("loss_small"), row.get("loss_large"), row.get("psnr")) for row in expected]


def read_log(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def start(recipe, out, *options, prefix=(), code=None):
    """``python -m pretrain`` in a process of its own, with the same single thread."""
    file = out.parent / f"{out.name}.yaml"
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(yaml.safe_dump(to_dict(recipe)))
    command = [sys.executable, "-c", code] if code else [sys.executable, *prefix, "-m", "pretrain"]
    if prefix:
        command = [sys.executable, *prefix, "-m", "pretrain"]
    return subprocess.Popen(
        [*command, str(file), "-o", str(out), *options],
        cwd=ROOT,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def kill_after(process, out, rows, delay=0.0):
    """SIGKILL for the whole process group as soon as the log has that many rows, and ``delay`` seconds later."""
    deadline = time.monotonic() + 240
    while not (out / "log.jsonl").exists() or (out / "log.jsonl").read_text().count("\n") < rows:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline, "the run does not get on"
        time.sleep(0.01)
    time.sleep(delay)
    assert process.poll() is None, "the run ended before it could be killed"
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


@pytest.mark.parametrize("workers, workers_then", [(0, 2), (2, 0)])
def test_killed_at_a_random_moment(recipe, unbroken, tmp_path, workers, workers_then):
    moment = random.randrange(1, STEPS - 5)
    print(f"killed after {moment} rows")                # shown when the test fails
    out = tmp_path / "run"
    kill_after(start(changed(recipe, workers=workers), out), out, moment, random.random() * 0.1)
    run(changed(recipe, workers=workers_then), out, resume=True)
    assert_same_end(out, unbroken)
    state = json.loads((out / "checkpoints" / f"step-{STEPS:08d}" / "state.json").read_text())
    expected = json.loads((unbroken / "checkpoints" / f"step-{STEPS:08d}" / "state.json").read_text())
    assert state["counters"]["broken_samples"] == expected["counters"]["broken_samples"] > 3
    assert state["broken"] == expected["broken"] and len(state["broken"]) == 1 and "3.png" in state["broken"][0]


def test_killed_while_a_checkpoint_is_written(recipe, unbroken, tmp_path):
    out = tmp_path / "run"
    code = ("import os, sys; import restore.resume as resume; from pathlib import Path\n"
            "def replace(source, target, original=os.replace):\n"
            "    if 'step-00000008' in str(target): os.kill(os.getpid(), 9)\n"
            "    original(source, target)\n"
            "os.replace = replace\n"
            "from pretrain.__main__ import main; sys.exit(main(sys.argv[1:]))")
    process = start(recipe, out, code=code)
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    left = {path.name for path in (out / "checkpoints").iterdir()}
    assert left == {"step-00000004", ".step-00000008.partial"}
    run(recipe, out, resume=True)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"step-00000012", "step-00000015"}
    assert_same_end(out, unbroken)


@pytest.mark.parametrize("how", ["short", "flipped", "missing", "no manifest"])
def test_a_damaged_checkpoint_is_passed_over(recipe, unbroken, tmp_path, how, capsys):
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    shutil.rmtree(out / "final")
    last = out / "checkpoints" / f"step-{STEPS:08d}"
    weights = last / "model.safetensors"
    data = bytearray(weights.read_bytes())
    if how == "short":
        weights.write_bytes(data[:-8])
    elif how == "flipped":
        data[-5] ^= 1
        weights.write_bytes(data)
    else:
        (weights if how == "missing" else last / "manifest.json").unlink()
    assert damage(last) and damage(out / "checkpoints" / "step-00000012") is None
    run(recipe, out, resume=True)
    assert f"step-{STEPS:08d}: passed over" in capsys.readouterr().err
    assert_same_end(out, unbroken)


def test_resume_before_the_first_checkpoint_and_of_a_finished_run(recipe, unbroken, tmp_path):
    out = tmp_path / "run"
    kill_after(start(changed(recipe, checkpoint_every=1000), out), out, 3)
    assert not RunFolder(out).steps()
    run(recipe, out, resume=True)
    assert_same_end(out, unbroken)
    before = (out / "final" / "model.safetensors").stat().st_mtime_ns
    assert run(recipe, out, resume=True) == out / "final"
    assert (out / "final" / "model.safetensors").stat().st_mtime_ns == before


def test_a_run_is_never_mixed_with_another(recipe, unbroken):
    with pytest.raises(RestoreError, match="--resume"):
        run(recipe, unbroken)
    other = changed(recipe, lr=1e-3, data={**to_dict(recipe.data), "crop": 24})
    with pytest.raises(RestoreError, match=r"data\.crop was 16 and is now 24; lr was 0\.0002 and is now 0\.001"):
        run(other, unbroken, resume=True)


def test_only_what_leaves_the_weights_alone_may_change(recipe):
    old = to_dict(recipe)
    require_same(old, to_dict(changed(recipe, steps=99, workers=2, log_every=7, trackers=["wandb"])), "run")
    for values, key in (({"validation": {"last": 2}}, "validation.last"), ({"accumulate": 2}, "accumulate"),
                        ({"seed": 1}, "seed"), ({"precision": "bf16"}, "precision"),
                        ({"branches": {"strategy": "sandwich"}}, "branches.strategy")):
        with pytest.raises(RestoreError, match=f"run: .*{key} was"):
            require_same(old, to_dict(changed(recipe, **values)), "run")


def test_a_run_that_has_no_room_does_not_begin(recipe, tmp_path, monkeypatch):
    def full(folder, needed, what):
        assert 1e5 < needed < 1e8
        raise RestoreError(f"{folder}: {what} needs 1 MB and the disk has 0 MB left")
    monkeypatch.setattr("restore.training.require_space", full)
    with pytest.raises(RestoreError, match="the run with its checkpoints needs"):
        run(recipe, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_more_steps_go_on_with_the_longer_schedule(recipe, unbroken, tmp_path):
    out = tmp_path / "run"
    shutil.copytree(unbroken, out)
    run(changed(recipe, steps=STEPS + 6), out, resume=True)
    rows = [row for row in read_log(out) if "lr" in row]
    assert [row["step"] for row in rows] == list(range(1, STEPS + 7))
    assert rows[STEPS]["lr"] > rows[STEPS - 1]["lr"]                 # as the help of `steps` says
    assert yaml.safe_load((out / "recipe.yaml").read_text())["steps"] == STEPS + 6


def test_a_full_disk_stops_the_run_with_the_last_checkpoint_whole(recipe, unbroken, tmp_path, monkeypatch):
    out = tmp_path / "run"

    def full(folder, needed, what):
        if "of step 8" in what:
            raise RestoreError(f"{folder}: {what} needs 1 MB and the disk has 0 MB left")
    with monkeypatch.context() as patch:
        patch.setattr("restore.resume.require_space", full)
        with pytest.raises(RestoreError, match="0 MB left.*the checkpoint of step 4 is whole.*--resume"):
            run(recipe, out)
    assert {path.name for path in (out / "checkpoints").iterdir()} == {"step-00000004"}
    run(recipe, out, resume=True)
    assert_same_end(out, unbroken)


@pytest.mark.parametrize("where", ["restore.checkpoint.save", "restore.resume.RunFolder.log"])
def test_a_full_disk_outside_of_checkpoints_is_told_too(recipe, unbroken, tmp_path, monkeypatch, where):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")
    shutil.copytree(unbroken, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "final")
    shutil.rmtree(tmp_path / "run" / "checkpoints" / f"step-{STEPS:08d}")
    with monkeypatch.context() as patch:
        patch.setattr(where, full)
        with pytest.raises(RestoreError, match="No space left on device; the checkpoint of step 1.* is whole"):
            run(recipe, tmp_path / "run", resume=True)
    run(recipe, tmp_path / "run", resume=True)
    assert_same_end(tmp_path / "run", unbroken)


def test_a_write_that_fails_half_way_leaves_nothing_behind(tmp_path):
    folder = RunFolder(tmp_path)
    folder.save(1, {"model": {"w": torch.arange(1000.0)}}, {"step": 1}, keep=2)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, hard))       # the disk takes 50 kB of a file and no more
    try:
        with pytest.raises(RestoreError, match="step-00000002.*could not be written.*step 1 is whole"):
            folder.save(2, {"model": {"w": torch.arange(100_000.0)}}, {"step": 2}, keep=2)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert [path.name for path in folder.checkpoints.iterdir()] == ["step-00000001"]
    step, groups, state = folder.load()
    assert step == 1 and state == {"step": 1} and torch.equal(groups["model"]["w"], torch.arange(1000.0))


def test_old_checkpoints_are_pruned(tmp_path):
    folder = RunFolder(tmp_path)
    for step in (5, 10, 15, 100_000_000):
        folder.save(step, {"model": {"w": torch.ones(1)}}, {"step": step}, keep=2)
    assert folder.steps() == [15, 100_000_000] and folder.load()[0] == 100_000_000


def test_the_log_is_cut_at_the_checkpoint(tmp_path):
    folder = RunFolder(tmp_path)
    for step in range(1, 5):
        folder.log(step=step, loss=0.5)
    with open(folder.log_path, "a") as file:
        file.write('{"step": 5, "lo')
    folder.cut_log(3)
    assert [row["step"] for row in read_log(tmp_path)] == [1, 2, 3]


def torchrun(port):
    return "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)


@pytest.mark.slow
def test_two_processes_killed(recipe, tmp_path):
    """Two gloo processes: an unbroken run against one that is killed, resumed on two workers, killed and resumed once
    more.
    """
    for number, workers in enumerate((0, 2, 0)):
        two = changed(recipe, workers=workers)
        if number == 0:
            whole = start(two, tmp_path / "whole", prefix=torchrun(29531))
            output = whole.communicate()[0]
            assert whole.returncode == 0, output
        process = start(two, tmp_path / "killed", "--resume", prefix=torchrun(29532 + number))
        if number < 2:
            kill_after(process, tmp_path / "killed", 5 + 5 * number, random.random() * 0.1)
        else:
            output = process.communicate()[0]
            assert process.returncode == 0, output
    assert_same_end(tmp_path / "killed", tmp_path / "whole")
    facts = json.loads((tmp_path / "whole" / "run.json").read_text())
    assert facts["processes"] == 2
