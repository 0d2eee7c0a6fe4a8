"""Importance against PSNR worked out here, allocation against its own rules, and its file in the hands of distillation."""

import json

import cv2
import numpy as np
import pytest
import torch
import yaml

from finetune.__main__ import main as command
from finetune.allocate import Space, allocate, cost, parse_budget, uniform
from finetune.distill import Distill, with_student
from finetune.importance import SHARES, Importance, level_convolutions, measure, table, without_filters
from finetune.run import build_model
from restore import checkpoint, save
from restore.depth import count_macs, count_parameters
from restore.errors import RestoreError
from restore.models import create_model
from restore.recipe import from_dict
from restore.validation import Pair


def network(**changes):
    """A small anydepth whose repeats and channels matter."""
    torch.manual_seed(0)
    depths = {"small": (1, 1, 1, 1), "large": (2, 2, 3, 2)}
    model = create_model("anydepth", **{"width": (8, 8, 16, 16), "depths": depths, **changes})
    torch.nn.init.normal_(model.output.weight, std=0.05)
    return model.eval()


def psnr(image, target):
    return 10 * np.log10(1 / ((image.clamp(0, 1).double() - target.double()) ** 2).mean().item())


def invented(repeats, narrower, shorter):
    """An importance in which a share of channels costs that share, and a repeat 1 dB, each times its level's factor."""
    return Importance(tuple(repeats), 30.0, [[factor * n for n in range(r)] for factor, r in zip(shorter, repeats)],
                      [{0.0: 0.0, **{share: factor * share for share in SHARES}} for factor in narrower])


@pytest.mark.parametrize("name, options, blocks", [
    ("anydepth", {"width": (8, 8, 8, 8)}, [{"encoder2.conv1", "encoder2.conv2", "decoder2.conv1", "decoder2.conv2"},
                                           {"latent.conv1", "latent.conv2"}]),
    ("dynet", {"width": 8, "refinement": 1}, [{f"{side}.{part}" for side in ("encoder2", "decoder2") for part in (
        "attn.qkv", "attn.project_out", "ffn.project_in", "ffn.project_out")},
        {"latent.attn.qkv", "latent.attn.project_out", "latent.ffn.project_in", "latent.ffn.project_out"}])])
def test_levels_are_found_by_what_repeats(name, options, blocks):
    levels = level_convolutions(create_model(name, **options))
    assert len(levels) == 4 and [set(levels[1]), set(levels[3])] == blocks


def test_filters_are_taken_away_and_put_back():
    model = network()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    weight = before["latent.conv1.weight"]
    weakest = sorted(range(16), key=lambda i: float(weight[i].abs().sum()))[:6]
    with without_filters(model, ["latent.conv1"], 0.375):
        gone = [i for i in range(16) if not model.latent.conv1.weight[i].any() and model.latent.conv1.bias[i] == 0]
        assert sorted(gone) == sorted(weakest)
        assert torch.equal(model.latent.conv2.weight, before["latent.conv2.weight"])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_costs_are_differences_of_psnr():
    model, rng = network(), np.random.default_rng(0)
    pairs = [Pair(str(n), task, *(torch.from_numpy(rng.random((3, 32, 48), np.float32)) for _ in range(2)))
             for n, task in enumerate(("rain", "rain", "haze"))]
    counted = []
    found = measure(model, pairs, (2, 2, 3, 2), shares=(0.25, 0.5), progress=counted.append)

    def quality(model, depth):                          # the mean over tasks, of the means over images
        with torch.no_grad():
            values = [psnr(model(pair.input[None], depth)[0], pair.target) for pair in pairs]
        return ((values[0] + values[1]) / 2 + values[2]) / 2

    whole = quality(model, (2, 2, 3, 2))
    assert found.psnr == pytest.approx(whole, abs=1e-4) and len(counted) == 1 + 5 + 8
    shorter = [whole - quality(model, (2, 2, repeats, 2)) for repeats in (3, 2, 1)]
    assert found.without_repeats[2] == pytest.approx(shorter, abs=1e-4)
    with torch.no_grad():
        for module in (model.encoder1.conv1, model.encoder1.conv2, model.decoder1.conv1, model.decoder1.conv2):
            for place in module.weight.abs().sum((1, 2, 3)).argsort()[:4]:
                module.weight[place], module.bias[place] = 0, 0
    assert found.without_channels[0][0.5] == pytest.approx(whole - quality(model, (2, 2, 3, 2)), abs=1e-4)
    lines = table(found).splitlines()
    assert len(lines) == 6 and "-50% channels" in lines[1] and f"{found.without_channels[0][0.5]:+.2f}" in lines[2]


def test_a_level_of_no_worth_goes_first():
    space = Space(network(), (2, 2, 3, 2))
    whole = space.plan(space.repeats, space.widths)
    importance = invented(space.repeats, narrower=(5, 5, 0, 5), shorter=(5, 5, 0, 5))
    plan = allocate(space, importance, parse_budget(f"{(whole.parameters - 800) / 1e3}kparams"))
    assert plan.widths[:2] + plan.widths[3:] == (8, 8, 16) and plan.widths[2] < 16
    assert plan.expected == 0


@pytest.mark.parametrize("budget", ["45mmacs", "32mmacs", "9kparams"])
def test_budgets_are_kept_and_used(budget):
    space, limit = Space(network(), (2, 2, 3, 2)), parse_budget(budget)
    importance = invented(space.repeats, narrower=(1, 2, 4, 3), shorter=(0.3, 0.1, 0.2, 0.4))
    plan = allocate(space, importance, limit)
    model = create_model("anydepth", width=plan.widths, depths={"only": plan.repeats}, default_depth="only")
    assert plan.macs == count_macs(model, 256, 256) and plan.parameters == count_parameters(model)
    assert cost(plan, limit.kind) <= limit.limit
    for level in range(4):                               # nothing that was taken away would fit in again
        if plan.repeats[level] < space.repeats[level] and limit.kind == "macs":
            more = tuple(r + (i == level) for i, r in enumerate(plan.repeats))
            assert cost(space.plan(more, plan.widths), limit.kind) > limit.limit
        if plan.widths[level] < space.widths[level]:
            wider = tuple(w + 4 * (i == level) for i, w in enumerate(plan.widths))
            assert cost(space.plan(plan.repeats, wider), limit.kind) > limit.limit
    alike = uniform(space, limit)
    assert cost(alike, limit.kind) <= limit.limit
    assert alike.widths[0] == alike.widths[1] and alike.widths[2] == alike.widths[3]


def test_repeats_cut_alike_come_as_near_to_the_budget_as_rounding_allows():
    space = Space(network(), (2, 3, 3, 4), repeats_only=True)
    fits = space.plan((2, 2, 2, 3), None)
    assert uniform(space, parse_budget(f"{fits.macs / 1e6 + 0.1:.1f}mmacs")).repeats == (2, 2, 2, 3)
    assert uniform(space, parse_budget(f"{fits.macs / 1e6 - 0.1:.1f}mmacs")).macs < fits.macs


def test_the_command_and_distillation_of_its_result(tmp_path, capsys):
    save(network(), tmp_path / "net.safetensors")
    rng = np.random.default_rng(0)
    for side in ("in", "gt"):
        (tmp_path / side).mkdir()
        for n in range(3):
            cv2.imwrite(str(tmp_path / side / f"{n}.png"), rng.integers(0, 256, (40, 40, 3), np.uint8))
    arguments = ["allocate", str(tmp_path / "net.safetensors"), "--pairs", str(tmp_path / "in"), str(tmp_path / "gt"),
                 "--images", "2", "--side", "32"]
    assert command([*arguments, "--budget", "30mmacs", "-o", str(tmp_path / "out"), "--compare"]) == 0
    printed = capsys.readouterr().out
    facts = json.loads((tmp_path / "out/importance.json").read_text())
    assert f"{facts['importance']['psnr']:.2f} dB" in printed and "channels removed" in printed and facts["images"] == 2
    picture = cv2.imread(str(tmp_path / "out/importance.png"))
    assert picture.shape[1] > 1000 and picture.std() > 10
    values = {"teacher": str(tmp_path / "net.safetensors"), "steps": 1, "tasks": {"rain": {"kind": "pairs", "pairs": "x"}}}
    for name, plan in (("student", facts["plan"]), ("uniform", facts["uniform"])):
        student = build_model(with_student(from_dict(Distill, {**values, "student": str(tmp_path / f"out/{name}.yaml")})))
        assert count_macs(student, 256, 256) == plan["macs"] <= 30e6 and count_parameters(student) == plan["parameters"]

    assert command([*arguments, "--budget", "110mmacs", "--repeats-only", "-o", str(tmp_path / "kept")]) == 0
    student = build_model(with_student(from_dict(Distill, {**values, "student": str(tmp_path / "kept/student.yaml")})))
    plan = json.loads((tmp_path / "kept/importance.json").read_text())["plan"]
    assert count_macs(student, 256, 256) == plan["macs"] <= 110e6 and student.repeats() == tuple(plan["repeats"])
    weights = checkpoint.load(tmp_path / "net.safetensors").state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in student.state_dict().items())
    assert yaml.safe_load((tmp_path / "kept/student.yaml").read_text())["start"] == str(tmp_path / "net.safetensors")


@pytest.mark.parametrize("text", ["3", "gmacs", "200ms", "0gmacs", "3 gb"])
def test_budgets_that_say_nothing(text):
    with pytest.raises(RestoreError, match="--budget"):
        parse_budget(text)


def test_what_cannot_be_allocated(tmp_path, capsys):
    assert parse_budget("1.5 MParams").limit == 1.5e6 and parse_budget("3gmacs").kind == "macs"
    space = Space(create_model("dynet", width=8, refinement=1, depths={"large": (1, 2, 1, 1)}), (1, 2, 1, 1))
    importance = invented((1, 2, 1, 1), (1, 1, 1, 1), (1, 1, 1, 1))
    with pytest.raises(RestoreError, match="only its repeats can change, which take no parameters"):
        allocate(space, importance, parse_budget("5kparams"))
    save(create_model("gunet_t", width=8), tmp_path / "gunet.safetensors")
    assert command(["allocate", str(tmp_path / "gunet.safetensors"), "--pairs", "x", "--budget", "1gmacs", "-o", "x"]) == 1
    assert "no levels that repeat" in capsys.readouterr().err
