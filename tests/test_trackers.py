"""Trackers, really started: each writes where it writes by default, without a network. One that is not installed is skipped."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
RUN = """
import sys, torch
from restore.models import create_model
from restore.training import Training, train

class Noisy:
    def sample(self, k):
        g = torch.Generator().manual_seed(k)
        target = torch.rand(3, 16, 16, generator=g)
        return {"input": target + torch.randn(3, 16, 16, generator=g) / 10, "target": target, "task": 0}

torch.set_num_threads(1)
model = create_model("anydepth", width=(4, 4, 4, 4), depths={"small": (1, 1, 1, 1), "large": (2, 1, 1, 1)})
train(model, Noisy(), Training(steps=4, batch_size=2, workers=0, device="cpu", log_every=1, checkpoint_every=4,
                               trackers=[sys.argv[2]]), sys.argv[1])
"""


def run(tracker, folder):
    """Four steps in a process of its own, whose home is ``folder``; returns the run's folder."""
    if importlib.util.find_spec(tracker) is None:
        pytest.skip(f"{tracker} is not installed")
    (folder / "run.py").write_text(RUN)
    environment = {**os.environ, "HOME": str(folder), "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "offline",
                   "TRACKIO_DIR": str(folder / "trackio"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, str(folder / "run.py"), str(folder / "out"), tracker], cwd=folder, env=environment,
                          capture_output=True, text=True, timeout=280, check=False)
    assert done.returncode == 0, done.stderr
    assert (folder / "out" / "final" / "model.safetensors").exists()
    return folder / "out"


@pytest.mark.slow
def test_tensorboard(tmp_path):
    out = run("tensorboard", tmp_path)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = [path for path in out.rglob("events.out.tfevents*")]
    scalars = {}
    for path in events:
        accumulator = EventAccumulator(str(path))
        accumulator.Reload()
        scalars |= {tag: [event.step for event in accumulator.Scalars(tag)] for tag in accumulator.Tags()["scalars"]}
    assert scalars["lr"] == [1, 2, 3, 4] and "gradient_norm" in scalars


@pytest.mark.slow
def test_trackio(tmp_path):
    import sqlite3
    run("trackio", tmp_path)
    found = []
    for path in (tmp_path / "trackio").rglob("*.db"):
        with sqlite3.connect(path) as database:
            tables = [name for name, in database.execute("select name from sqlite_master where type = 'table'")]
            if "metrics" in tables:
                found += [step for step, in database.execute("select step from metrics order by step")]
    assert found == [1, 2, 3, 4]


@pytest.mark.slow
def test_wandb_offline(tmp_path):
    run("wandb", tmp_path)
    (log,) = tmp_path.rglob("*.wandb")
    assert b"gradient_norm" in log.read_bytes()
