"""The training loop against a plain PyTorch loop, and what it does when numbers or words are wrong."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import restore
from restore import branches as branching
from restore.averaging import Average
from restore.branches import Branches
from restore.data import batches
from restore.errors import RestoreError
from restore.models import create_model
from restore.training import Training, learning_rate, train
from restore.validation import Pair

ROOT = Path(__file__).resolve().parents[1]
pytestmark = pytest.mark.usefixtures("one_thread")


class Noisy:
    """Random images with noise; those in ``poison`` are NaN."""

    def __init__(self, poison=()):
        self.poison = poison

    def sample(self, k):
        generator = torch.Generator().manual_seed(k)
        target = torch.rand(3, 8, 8, generator=generator)
        bad = k in self.poison
        return {
            "input": target * math.nan if bad else target + 0.1 * torch.randn(3, 8, 8, generator=generator),
            "target": target,
            "task": k % 2,
            "skipped": "",
        }


def network():
    torch.manual_seed(0)
    return create_model("dynet", width=8, heads=(1, 1, 1, 1), refinement=1,
                        depths={"small": (1, 1, 1, 1), "large": (2, 1, 1, 1)}, default_depth="large")


def settings(**values):
    return Training(
        **{
            "steps": 4,
            "batch_size": 2,
            "workers": 0,
            "device": "cpu",
            "lr": 1e-3,
            "log_every": 1,
            "checkpoint_every": 100,
            "ema": 0.0,
            **values,
        }
    )


def rows(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights(out):
    return load_file(out / "final" / "model.safetensors")


def test_learning_rate_by_hand():
    training = settings(steps=110, warmup=10, lr=1.0, lr_end=0.1)
    rates = [learning_rate(training, step) for step in range(110)]
    assert rates[0] == pytest.approx(1 / 11) and rates[9] == pytest.approx(10 / 11) and rates[10] == pytest.approx(1)
    assert rates[60] == pytest.approx(0.55) and 0.1 < rates[-1] < 0.101
    assert learning_rate(settings(warmup=0, lr=1.0), 0) == 1


@pytest.mark.parametrize("accumulate", [1, 2])
def test_the_loop_is_the_plain_loop(tmp_path, accumulate):
    """The same weights, to the bit, as twenty lines of plain PyTorch; the draws of the branch are taken from their own
    tested function.
    """
    training = settings(steps=3, warmup=2, weight_decay=0.1, clip=0.1, accumulate=accumulate, batch_size=4)
    train(network(), Noisy(), training, tmp_path / "run")

    model, loader = network(), batches(Noisy(), 4 // accumulate)
    names = branching.depth_names(model, training.branches)
    optimizer = torch.optim.AdamW([{"params": [p for p in model.parameters() if p.ndim >= 2], "weight_decay": 0.1},
                                   {"params": [p for p in model.parameters() if p.ndim < 2], "weight_decay": 0.0}])
    for step in range(3):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(training, step)
        depth = branching.plan(training.branches, names, 0, step)[0].depth
        for _ in range(accumulate):
            batch = next(loader)
            ((model(batch["input"], depth) - batch["target"]).abs().mean() / accumulate).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 0.1)
        optimizer.step()
        optimizer.zero_grad()
    got = weights(tmp_path / "run")
    assert all(torch.equal(got[name], value) for name, value in model.state_dict().items())
    assert not torch.equal(got["embed.weight"], network().embed.weight)


def test_sandwich_with_distillation_by_hand(tmp_path):
    """After one step of plain averaging with lr so that AdamW moves by its sign: the gradient is of both passes, the
    small one's target the large one's detached output."""
    training = settings(steps=1, branches=Branches("sandwich", distill=True), betas=(0.0, 0.0), clip=0.0)
    train(network(), Noisy(), training, tmp_path / "run")
    model, batch = network(), next(batches(Noisy(), 2))
    large, small = (model(batch["input"], depth) for depth in ("large", "small"))
    loss = ((large - batch["target"]).abs().mean() + (small - large.detach()).abs().mean()) / 2
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    loss.backward()
    got = weights(tmp_path / "run")
    for name, p in model.named_parameters():
        expected = before[name] - 1e-3 * p.grad / (p.grad.abs() + 1e-8)
        assert torch.allclose(got[name], expected, atol=2e-5), name


@pytest.mark.parametrize("strategy", ["per_sample", "sandwich", "largest_only", "single:2,2,1,1"])
def test_every_strategy_trains(tmp_path, strategy):
    train(network(), Noisy(), settings(steps=3, batch_size=4, branches=Branches(strategy)), tmp_path)
    losses = {key for row in rows(tmp_path) for key in row if key.startswith("loss")}
    expected = {"largest_only": {"loss_large"}, "single:2,2,1,1": {"loss_2,2,1,1"}}
    assert losses == expected.get(strategy, {"loss_small", "loss_large"})


def test_average_of_weights_by_hand():
    layer = nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        layer.weight.fill_(1.0)
    average = Average(layer, 0.5)
    for step, value in ((1, 2.0), (100, 4.0)):
        with torch.no_grad():
            layer.weight.fill_(value)
        average.update(layer, step)
    first = 1 * 2 / 11 + 2 * 9 / 11                 # the first steps count more: decay (1 + 1) / (10 + 1)
    with average.applied(layer):
        assert layer.weight.item() == pytest.approx(0.5 * first + 0.5 * 4)
    assert layer.weight.item() == 4


def test_final_holds_the_average(tmp_path):
    train(network(), Noisy(), settings(ema=0.9), tmp_path)
    last = load_file(tmp_path / "checkpoints" / "step-00000004" / "ema.safetensors")
    current = load_file(tmp_path / "checkpoints" / "step-00000004" / "model.safetensors")
    got = weights(tmp_path)
    assert all(torch.equal(got[name], last[name]) for name in last)
    assert not torch.equal(got["embed.weight"], current["network.embed.weight"])


def test_a_step_that_is_not_finite_is_skipped_and_counted(tmp_path):
    steps = settings(steps=3, checkpoint_every=1, keep_checkpoints=9, ema=0.5)
    train(network(), Noisy(poison={2}), steps, tmp_path)
    assert [row["skipped_steps"] for row in rows(tmp_path)] == [0, 1, 1]
    assert not any(math.isnan(value) for row in rows(tmp_path) for value in row.values())
    for part in ("model", "optimizer", "ema"):
        one, two, three = (
            load_file(tmp_path / "checkpoints" / f"step-0000000{n}" / f"{part}.safetensors") for n in (1, 2, 3)
        )
        assert all(torch.equal(one[name], two[name]) for name in one)
        assert any(not torch.equal(two[name], three[name]) for name in one)
        assert all(torch.isfinite(value).all() for value in three.values())


def test_steps_that_stay_not_finite_stop_the_run(tmp_path):
    training = settings(steps=50, max_bad_steps=3, checkpoint_every=2)
    with pytest.raises(RestoreError, match=r"step 7: .*not finite in 3 consecutive steps.*step-00000006.*lower lr"):
        train(network(), Noisy(poison=set(range(8, 1000))), training, tmp_path)
    saved = load_file(tmp_path / "checkpoints" / "step-00000006" / "model.safetensors")
    assert all(torch.isfinite(value).all() for value in saved.values())


def test_validation_at_every_depth(tmp_path):
    from skimage.metrics import peak_signal_noise_ratio
    rng = np.random.default_rng(0)
    pairs = [
        Pair(str(n), "noise", torch.from_numpy(rng.random((3, 20, 30), np.float32)), torch.rand(3, 20, 30))
        for n in range(2)
    ]
    pairs.append(Pair("x", "rain", torch.full((3, 9, 7), 0.5), torch.full((3, 9, 7), 0.6)))
    final = train(
        network(), Noisy(), settings(validate_every=3), tmp_path, validation=pairs, provenance={"corpus": {"source": "/far/away/photos"}}
    )
    found = [row for row in rows(tmp_path) if "psnr" in row]
    assert [row["step"] for row in found] == [3, 4]
    expected = np.mean([peak_signal_noise_ratio(p.target.numpy(), p.input.numpy(), data_range=1) for p in pairs[:2]])
    assert found[0]["psnr"]["input"]["noise"] == pytest.approx(expected, abs=1e-3)
    assert found[0]["psnr"]["input"]["rain"] == pytest.approx(20, abs=1e-3)
    assert found[0]["psnr"]["input"]["mean"] == pytest.approx((expected + 20) / 2, abs=1e-3)
    model = restore.load(final)
    for depth in ("small", "large"):                        # the last validation was of the weights that were saved
        with torch.no_grad():
            output = [model(p.input[None], depth)[0].clamp(0, 1) for p in pairs]
        score = np.mean(
            [peak_signal_noise_ratio(p.target.numpy(), o.numpy(), data_range=1) for p, o in zip(pairs[:2], output)]
        )
        assert found[1]["psnr"][depth]["noise"] == pytest.approx(score, abs=2e-3)
        assert model.provenance["psnr"][depth]["noise"] == pytest.approx(score, abs=2e-3)
    assert model.provenance["corpus"] == {"source": "photos"} and model.provenance["steps"] == 4
    assert model.provenance["recipe"]["lr"] == 1e-3
    strip = cv2.imread(str(tmp_path / "validation" / "step-00000004.png"))
    assert strip.shape == (16 + 2 * 22 + 11, 4 * 32, 3)              # a line of names, three rows of four pictures
    assert np.abs(strip[16:36, :30, ::-1].transpose(2, 0, 1) / 255 - pairs[0].input.numpy()).max() < 0.51 / 255
    assert np.abs(strip[60:69, 96:103] / 255 - 0.6).max() < 0.51 / 255


class Shade:
    """Two tasks that a glance at the input tells apart: dark and bright."""

    def sample(self, k):
        task = k % 2
        return {
            "input": torch.full((3, 8, 8), 0.2 + 0.6 * task),
            "target": torch.full((3, 8, 8), 0.5),
            "task": task,
            "skipped": "",
        }


def test_the_head_learns_the_task_and_stays_out_of_the_weights(tmp_path):
    from pretrain.run import Head, latent_channels
    model = network()
    assert latent_channels(model) == 64
    torch.manual_seed(1)
    final = train(model, Shade(), settings(steps=18, batch_size=4), tmp_path, head=Head(64, 2), head_weight=1.0)
    accuracy = [row["task_accuracy"] for row in rows(tmp_path)]
    assert np.mean(accuracy[-5:]) == 1 and np.mean(accuracy[:3]) < 1
    assert set(weights(tmp_path)) == set(network().state_dict())
    saved = load_file(tmp_path / "checkpoints" / "step-00000018" / "model.safetensors")
    assert any(name.startswith("head.") for name in saved)                 # but in the checkpoint, to be resumed
    restore.load(final)
    with pytest.raises(RestoreError, match="latent"):
        train(create_model("gunet_t"), Shade(), settings(), tmp_path / "other", head=Head(64, 2))


@pytest.mark.parametrize(
    "values", [{"precision": "bf16"}, {"precision": "fp16"}, {"channels_last": True}, {"loss": "frequency"}]
)
def test_options_of_the_loop(tmp_path, values):
    train(network(), Noisy(), settings(steps=2, **values), tmp_path)
    assert rows(tmp_path)[-1]["skipped_steps"] == 0
    plain = rows(tmp_path)[-1]["loss_large" if "loss_large" in rows(tmp_path)[-1] else "loss_small"]
    assert 0 < plain < (1 if values.get("loss") != "frequency" else 5)


def test_a_step_hook_sees_every_step(tmp_path):
    seen = []
    train(
        network(), Noisy(), settings(steps=3), tmp_path, on_step=lambda step, model: seen.append((step, model.training))
    )
    assert seen == [(0, True), (1, True), (2, True)]


@pytest.mark.parametrize(
    "values, message",
    [
        ({"batch_size": 3, "accumulate": 2}, "batch_size: 3 cannot be cut"),
        ({"trackers": ["wandb"]}, "trackers: wandb is not installed"),
        ({"branches": Branches("single:huge")}, "branches.strategy.*huge"),
    ],
)
def test_what_cannot_be_is_told_before_the_run_begins(tmp_path, values, message):
    if "trackers" in values:
        import importlib.util
        if importlib.util.find_spec("wandb"):
            pytest.skip("wandb is installed here")
    with pytest.raises(RestoreError, match=message):
        train(network(), Noisy(), settings(**values), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "values, key",
    [
        ({"steps": 0}, "steps"),
        ({"lr": -1.0}, "lr"),
        ({"lr": math.nan}, "lr"),
        ({"ema": 1.0}, "ema"),
        ({"betas": (0.9, 1.0)}, "betas"),
        ({"warmup": 4}, "warmup"),
        ({"clip": -1.0}, "clip"),
        ({"workers": -1}, "workers"),
        ({"trackers": ["tensorbord"]}, "trackers"),
        ({"lr_end": 1.5}, "lr_end"),
        ({"keep_checkpoints": 0}, "keep_checkpoints"),
        ({"max_bad_steps": 0}, "max_bad_steps"),
    ],
)
def test_impossible_settings_are_named(values, key):
    with pytest.raises(RestoreError, match=f"^{key}:"):
        settings(**values).check()


TWO = """
import sys, torch
from torch import nn
from restore.branches import Branches
from restore.models.base import RestorationModel
from restore.training import Training, train
import restore.models, restore.checkpoint
torch.set_num_threads(1)

class Forked(RestorationModel):
    name, levels, multiple, minimum = "forked", 1, 1, 1
    def __init__(self):
        super().__init__({}, {"a": (1,), "b": (2,)}, "a")
        self.first, self.second = nn.Conv2d(3, 3, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1)
    def restore(self, x, repeats):
        return self.first(x) if repeats == (1,) else self.second(self.second(x))      # each depth leaves a layer unused
restore.models.MODELS["forked"] = Forked

class Noisy:
    def sample(self, k):
        g = torch.Generator().manual_seed(k)
        target = torch.rand(3, 8, 8, generator=g)
        bad = k == 5                                    # in one process only: step 1 is left out by both
        return {"input": target * float("nan") if bad else target + torch.randn(3, 8, 8, generator=g) / 10, "target":
        target, "task": 0}

torch.manual_seed(0)
strategy, accumulate = sys.argv[2], int(sys.argv[3])
train(Forked(), Noisy(), Training(steps=6, batch_size=4, accumulate=accumulate, workers=0, device="cpu", lr=1e-2,
      log_every=1, branches=Branches(strategy)), sys.argv[1])
"""


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["alternate", "per_sample", "sandwich"])
def test_two_processes_do_what_one_does(tmp_path, strategy):
    """Also where a depth leaves layers unused, and where one process alone meets a step that is not finite."""
    script = tmp_path / "two.py"
    script.write_text(TWO)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", "29541"]
    for out, command, accumulate in (("one", [sys.executable], 2), ("two", launch, 1)):
        done = subprocess.run(
            [*command, str(script), str(tmp_path / out), strategy, str(accumulate)],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        assert done.returncode == 0, done.stderr
    one, two = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert rows(tmp_path / "one")[-1]["skipped_steps"] == rows(tmp_path / "two")[-1]["skipped_steps"] == 1
    # whose draws are by micro-batch, so that one process with two differs
    if strategy != "per_sample":
        assert all(torch.allclose(one[name], two[name], atol=1e-5) for name in one)
    assert all(torch.isfinite(value).all() for value in two.values())
