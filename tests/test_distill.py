"""Distillation: stages and attention maps by hand, the loss part by part, every kind of teacher and student, whole runs."""

import dataclasses
import itertools
import json
import shutil

import cv2
import numpy as np
import pytest
import torch
import yaml

from finetune.__main__ import main as command
from finetune.distill import Distill, Distillation, Weights, run, with_student
from finetune.features import Recorder, affinity_loss, decoder_stages
from finetune.mixture import Mixture, find_sources
from finetune.run import build_model
from finetune.teacher import FolderTeacher, open_teacher
from restore import checkpoint, save
from restore.errors import RestoreError
from restore.models import create_model
from restore.recipe import from_dict

OPTIONS = {"width": (8, 8, 12, 16), "depths": {"small": (1, 1, 1, 1), "large": (1, 2, 1, 2)}}
RAISED, TAUGHT = 40, 25         # what the degraded images, and the teacher's outputs, have more than the clean ones


def network(seed=0, **changes):
    """A small anydepth whose output is not its input, and depends on the depth."""
    torch.manual_seed(seed)
    model = create_model("anydepth", **{**OPTIONS, **changes})
    torch.nn.init.normal_(model.output.weight, std=0.02)
    with torch.no_grad():
        for stage in (model.encoder2, model.decoder2, model.latent):
            stage.conv2.weight *= 5
    return model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Pairs in ``in`` and ``gt``, a teacher's outputs in ``outputs``, a checkpoint ``teacher.safetensors``."""
    root, rng = tmp_path_factory.mktemp("data"), np.random.default_rng(0)
    for folder in ("in", "gt", "outputs/rain"):
        (root / folder).mkdir(parents=True)
    for n in range(6):
        clean = cv2.resize(rng.integers(40, 200, (6, 7, 3), np.uint8), (48, 40))
        cv2.imwrite(str(root / f"gt/{n}.png"), clean)
        cv2.imwrite(str(root / f"in/{n}.png"), clean + RAISED)
        cv2.imwrite(str(root / f"outputs/rain/{n}.png"), (clean.astype(np.uint16) + TAUGHT) * 257)         # 16 bits
    save(network(1), root / "teacher.safetensors")
    return root


def recipe_of(data, /, **changes):
    values = {"teacher": str(data / "teacher.safetensors"), "student": "anydepth", "steps": 4, "batch_size": 2, "workers": 0,
              "device": "cpu", "warmup": 1, "log_every": 1, "validate_every": 2, "checkpoint_every": 2, "keep_checkpoints": 5,
              "data": {"crop": 32}, "validation": {"images": 1, "side": 32},
              "model": {"options": {"width": [8, 8, 8, 8]}, "depths": {"small": [1, 1, 1, 1], "large": [1, 1, 1, 2]}},
              "distill": {"features": 0.5, "ssim": 0.1},
              "tasks": {"rain": {"kind": "pairs", "pairs": [[str(data / "in"), str(data / "gt")]], "holdout": 1}}}
    return from_dict(Distill, {**values, **changes})


# -- features --------------------------------------------------------------------------------------------------------------

@pytest.mark.parametrize("name, options, stages", [
    ("gunet_t", {"width": 8}, {1: "decoder.0", 2: "decoder.1", 4: "decoder.2", 8: "middle"}),
    ("dynet", {"width": 8, "refinement": 1}, {1: "refinement", 2: "decoder2", 4: "decoder3"}),
    ("anydepth", OPTIONS, {2: "decoder1", 4: "decoder2", 8: "decoder3", 16: "latent"})])
def test_stages_are_the_decoders(name, options, stages):
    model = create_model(name, **options)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    found = decoder_stages(model)
    assert stages.items() <= found.items()
    assert model.training and all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert not any(module._forward_hooks for module in model.modules())


def test_affinity_by_hand():
    """Maps (3, 4) and (4, 3) are (.6, .8) and (.8, .6) at unit length: squared distance 0.08. A scale of one alone is left out."""
    a, b = torch.tensor([[[3.0, 4.0]]]), torch.tensor([[[4.0, 3.0]]])
    assert affinity_loss({1: a, 2: a}, {1: b, 2: a, 4: b}).item() == pytest.approx((0.08 + 0) / 2)
    assert affinity_loss({1: a}, {1: 7 * a}).item() == pytest.approx(0, abs=1e-6)             # only where, not how much
    assert affinity_loss({1: a}, {1: b.repeat_interleave(2, 2)}).item() == pytest.approx(0.08, abs=0.01)


def test_maps_are_the_energy_of_the_last_repeat():
    model, seen = network(), []
    recorder = Recorder(model, {2: "decoder1"}, training=True)
    model.decoder1.register_forward_hook(lambda module, inputs, output: seen.append(output.detach()))
    x = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        model(x, "large")
    assert recorder.take() == {}                                                            # validation goes unnoticed
    model(x, "large")
    maps = recorder.take()[2]
    assert maps.shape == (2, 16, 16) and maps.requires_grad
    np.testing.assert_allclose(maps.detach().numpy(), (seen[-1].numpy() ** 2).sum(1), rtol=1e-4)
    assert recorder.take() == {}


# -- the loss --------------------------------------------------------------------------------------------------------------

def test_the_loss_is_the_sum_of_its_weighted_parts(data):
    weights = Weights(target=0.5, teacher=2.0, frequency=0.25, ssim=0.75, features=3.0)
    student, teacher = network(2, width=(8, 12, 8, 8)), open_teacher(str(data / "teacher.safetensors"))
    criterion = Distillation(student, teacher, weights)
    x, target = torch.rand(2, 3, 32, 32), torch.rand(2, 3, 32, 32)
    batch = criterion.prepare({"input": x, "target": target})
    loss, parts = criterion(student(x, "small"), target, batch)

    own = checkpoint.load(data / "teacher.safetensors")
    with torch.no_grad():
        output, wanted = student(x, "small").double().numpy(), own(x, "large").double().numpy()

    def l1_and_frequency(a, b):
        spectrum = np.fft.rfft2(a - b)
        return np.abs(a - b).mean() + 0.25 * (np.abs(spectrum.real).mean() + np.abs(spectrum.imag).mean()) / 2

    from skimage.metrics import structural_similarity
    similarity = np.mean([structural_similarity(a, b, channel_axis=0, data_range=1, gaussian_weights=True, sigma=1.5,
                                                use_sample_covariance=False) for a, b in zip(output, target.double().numpy())])
    expected = 0.5 * l1_and_frequency(output, target.double().numpy()) + 2 * l1_and_frequency(output, wanted) \
        + 0.75 * (1 - similarity) + 3 * float(parts["features"].detach())
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-4) and parts["features"] > 1e-3
    assert criterion.scales == [2, 4, 8, 16]


def test_a_teacher_equal_to_the_student_shows_nothing_new(data):
    student = checkpoint.load(data / "teacher.safetensors")
    criterion = Distillation(student, open_teacher(str(data / "teacher.safetensors")), Weights(target=0, features=1.0))
    batch = criterion.prepare({"input": torch.rand(1, 3, 32, 32), "target": torch.rand(1, 3, 32, 32)})
    loss, _ = criterion(student(batch["input"], "large"), batch["target"], batch)
    assert loss.item() == pytest.approx(0, abs=1e-5)
    loss, _ = criterion(student(batch["input"], "small"), batch["target"], batch)
    assert loss.item() > 1e-3
    loss.backward()
    assert student.encoder1.conv1.weight.grad.abs().sum() > 0
    assert all(p.grad is None for p in criterion.parameters())


def test_parts_of_no_weight_are_not_computed(data):
    teacher = open_teacher(str(data / "teacher.safetensors"))
    teacher.forward = None                                                                  # would fail if it were called
    criterion = Distillation(network(), teacher, Weights(teacher=0))
    batch = {"input": torch.rand(1, 3, 32, 32), "target": torch.rand(1, 3, 32, 32)}
    assert criterion.prepare(batch) is batch
    assert set(criterion(batch["input"], batch["target"], batch)[1]) == {"target"}


# -- teachers --------------------------------------------------------------------------------------------------------------

def test_a_checkpoint_teaches_at_its_largest_depth_or_at_another(data):
    x, model = torch.rand(2, 3, 32, 32), checkpoint.load(data / "teacher.safetensors")
    with torch.no_grad():
        for suffix, depth in (("", (1, 2, 1, 2)), ("@small", (1, 1, 1, 1)), ("@2,1,1,1", (2, 1, 1, 1))):
            teacher = open_teacher(f"{data / 'teacher.safetensors'}{suffix}")
            assert torch.equal(teacher.train()({"input": x}), model(x, depth)) and not teacher.network.training


def test_an_onnx_file_teaches(tmp_path):
    onnx = pytest.importorskip("onnx", reason="the optional package onnx is not installed")
    pytest.importorskip("onnxruntime", reason="the optional package onnxruntime is not installed")
    from onnx import TensorProto, helper
    shape = [1, 3, "h", "w"]
    half = helper.make_tensor("half", TensorProto.FLOAT, [1], [0.5])
    graph = helper.make_graph([helper.make_node("Mul", ["x", "half"], ["y"])], "halve",
                              [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape)], [half])
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), tmp_path / "teacher.onnx")
    x, teacher = torch.rand(2, 3, 32, 24), open_teacher(str(tmp_path / "teacher.onnx"))
    assert torch.equal(teacher({"input": x}), x / 2)
    with pytest.raises(RestoreError, match="distill.features: the teacher shows no features"):
        Distillation(network(), teacher, Weights(features=1.0))
    with pytest.raises(RestoreError, match="teacher.onnx does not take crops of 24 x 32 pixels"):
        teacher({"input": torch.rand(1, 4, 32, 24)})


def test_a_network_that_spandrel_loads_teaches(data, tmp_path):
    pytest.importorskip("spandrel", reason="the optional package spandrel is not installed")
    sizes, state = [3, *[8] * 19, 3], {}                     # DnCNN without normalisation: keys model.0, model.2, ...
    torch.manual_seed(0)
    for i, (inner, outer) in enumerate(itertools.pairwise(sizes)):
        state |= {f"model.{2 * i}.weight": torch.randn(outer, inner, 3, 3) * 0.1, f"model.{2 * i}.bias": torch.zeros(outer)}
    torch.save(state, tmp_path / "dncnn.pth")
    teacher, x = open_teacher(str(tmp_path / "dncnn.pth")), torch.rand(2, 3, 32, 32)
    y = x
    for i in range(20):
        y = torch.nn.functional.conv2d(y.relu() if i else y, state[f"model.{2 * i}.weight"], padding=1)
    torch.testing.assert_close(teacher({"input": x}), (x - y).clamp(0, 1), atol=1e-5, rtol=0)
    student = create_model("gunet_t", width=8)
    assert Distillation(student, teacher, Weights(features=1.0)).scales == [1]


def test_outputs_of_a_folder_are_cut_and_turned_with_their_pair(data):
    sources = find_sources(recipe_of(data))
    open_teacher(str(data / "outputs")).join(sources)
    samples = Mixture(sources, 16, 0)
    for k in range(20):
        sample = samples.sample(k)
        assert (sample["teacher"] - sample["target"] - TAUGHT / 255).abs().max() < 1e-6
        assert (sample["input"] - sample["target"] - RAISED / 255).abs().max() < 1e-6


def test_folders_that_cannot_teach(data, tmp_path):
    shutil.copytree(data / "outputs/rain", tmp_path / "some")
    gone = find_sources(recipe_of(data))[0].corpus.pairs[3].name
    (tmp_path / f"some/{gone}.png").unlink()
    with pytest.raises(RestoreError, match=rf"lacks outputs of 1 of 5 pairs of rain, such as {gone}.png"):
        FolderTeacher(tmp_path / "some").join(find_sources(recipe_of(data)))
    made = {"derain": {"clean": str(data / "gt"), "holdout": 0}}
    with pytest.raises(RestoreError, match="tasks.derain.clean: the teacher"):
        FolderTeacher(tmp_path / "some").join(find_sources(recipe_of(data, tasks=made)))
    varied = recipe_of(data)
    next(iter(varied.tasks.values())).strength = [0.5, 1.5]
    with pytest.raises(RestoreError, match="strength: the outputs in .*some are those of the pairs as they are"):
        FolderTeacher(tmp_path / "some").join(find_sources(varied))
    cv2.imwrite(str(tmp_path / f"some/{gone}.png"), np.zeros((10, 10, 3), np.uint8))
    sources = find_sources(recipe_of(data))
    FolderTeacher(tmp_path / "some").join(sources)
    with pytest.raises(RestoreError, match=f"{gone}.png: 10x10, but"):
        sources[0].corpus.read(3)


@pytest.mark.parametrize("name, words", [
    ("nowhere", "teacher: nowhere: no such file"), ("nowhere.onnx", "teacher: nowhere.onnx: no such"),
    ("teacher.safetensors@huge", "depth 'huge': anydepth has small, large")])
def test_teachers_that_are_not_there(data, name, words, monkeypatch):
    monkeypatch.chdir(data)
    with pytest.raises(RestoreError, match=words):
        open_teacher(name)


# -- students and whole runs -----------------------------------------------------------------------------------------------

def test_students_by_name_checkpoint_depth_and_file(data, tmp_path):
    by_name = build_model(with_student(recipe_of(data)))
    assert by_name.config["width"] == [8, 8, 8, 8]
    other = str(data / "teacher.safetensors")
    plain = {"model": {}}
    of_checkpoint = build_model(with_student(recipe_of(data, student=other, **plain)))
    assert torch.equal(of_checkpoint.output.weight, checkpoint.load(other).output.weight)
    smaller = with_student(recipe_of(data, student=f"{other}@small", **plain))
    assert smaller.branches.strategy == "single:small" and smaller.start == other
    section = {"model": {"name": "anydepth", "options": {"width": [8, 8, 8, 12]}, "depths": {"allocated": [1, 2, 1, 1]}}}
    (tmp_path / "student.yaml").write_text(yaml.safe_dump(section))
    allocated = build_model(with_student(recipe_of(data, student=str(tmp_path / "student.yaml"))))
    assert allocated.config["width"] == [8, 8, 8, 12] and allocated.repeats() == (1, 2, 1, 1)
    (tmp_path / "student.yaml").write_text("width: 3\n")
    with pytest.raises(RestoreError, match="no section called model"):
        with_student(recipe_of(data, student=str(tmp_path / "student.yaml")))


def test_a_killed_distillation_goes_on_to_the_same_bits(data, tmp_path):
    recipe = recipe_of(data, branches={"strategy": "sandwich", "distill": True})
    told = []
    whole = run(recipe, tmp_path / "whole", tell=told.append)
    assert any("features compared at 1/2, 1/4, 1/8, 1/16" in text for text in told)
    shutil.copytree(tmp_path / "whole", tmp_path / "killed")
    shutil.rmtree(tmp_path / "killed/final")
    shutil.rmtree(tmp_path / "killed/checkpoints/step-00000004")
    resumed = run(recipe, tmp_path / "killed", resume=True, tell=told.append)
    a, b = checkpoint.load(whole).state_dict(), checkpoint.load(resumed).state_dict()
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert (tmp_path / "whole/log.jsonl").read_text().count("\n") == (tmp_path / "killed/log.jsonl").read_text().count("\n")
    rows = [json.loads(line) for line in (tmp_path / "whole/log.jsonl").read_text().splitlines()]
    assert {"loss_large", "teacher_large", "features_small", "ssim_small", "target_large"} <= rows[0].keys()
    assert {"input", "small", "large"} == next(row["psnr"] for row in rows if "psnr" in row).keys()
    assert checkpoint.load(whole).provenance["teacher"] == "teacher.safetensors"

    save(network(5), data / "another.safetensors")
    with pytest.raises(RestoreError, match="teacher_sha256 was"):
        shutil.copy(data / "another.safetensors", data / "moved.safetensors")
        changed = dataclasses.replace(recipe, teacher=str(data / "moved.safetensors"))
        run(changed, tmp_path / "killed", resume=True, tell=told.append)


def test_a_smaller_depth_comes_nearer_to_the_teacher(data, tmp_path):
    teacher = str(data / "teacher.safetensors")
    recipe = recipe_of(data, student=f"{teacher}@small", model={}, steps=25, lr=1e-3, ema=0.5, checkpoint_every=25,
                       validate_every=25, distill={"target": 0.0, "frequency": 0.0, "features": 0.1})
    final = run(recipe, tmp_path / "run", tell=lambda text: None)
    x = torch.stack([Mixture(find_sources(recipe), 32, 7).sample(k)["input"] for k in range(8)])
    with torch.no_grad():
        wanted = checkpoint.load(teacher)(x, "large")
        before, after = ((checkpoint.load(path)(x, "small") - wanted).abs().mean() for path in (teacher, final))
    assert after < 0.7 * before


def test_outputs_of_a_folder_are_what_is_learned(data, tmp_path):
    """Only the teacher counts: the output approaches the clean images plus ``TAUGHT``, not the clean ones."""
    model = {"options": {"width": [8, 8, 8, 8]}, "depths": {"one": [1, 1, 1, 1]}}
    recipe = recipe_of(data, teacher=str(data / "outputs"), model=model, steps=40, batch_size=4, lr=1e-2, ema=0.5, checkpoint_every=40, validate_every=40, data={"crop": 16},
                       distill={"target": 0.0, "frequency": 0.0})
    final = run(recipe, tmp_path / "run", tell=lambda text: None)
    x = torch.full((1, 3, 32, 32), 0.5)
    with torch.no_grad():
        shift = float((checkpoint.load(final)(x) - x).mean() * 255)
    assert shift == pytest.approx(TAUGHT - RAISED, abs=6)


@pytest.mark.parametrize("changes, words", [
    ({"teacher": ""}, "teacher: give a checkpoint"), ({"loss": "frequency"}, "weighs its losses under distill"),
    ({"distill": {"ssim": -1}}, "distill.ssim: -1"), ({"distill": {"target": 0, "teacher": 0}}, "leave nothing to learn"),
    ({"distill": {"l2": 1}}, "distill.l2: no such key")])
def test_impossible_recipes_are_refused_by_name(data, changes, words):
    with pytest.raises(RestoreError, match=words):
        recipe_of(data, **changes)


def test_the_command(data, tmp_path, capsys):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump({
        "steps": 1, "batch_size": 1, "workers": 0, "device": "cpu", "data": {"crop": 32}, "validation": {"images": 0},
        "model": {"options": {"width": 8}},
        "tasks": {"rain": {"kind": "pairs", "pairs": [[str(data / "in"), str(data / "gt")]]}}}))
    arguments = ["distill", str(tmp_path / "recipe.yaml"), "--teacher", str(data / "teacher.safetensors"), "--student",
                 "gunet_t", "--distill.features", "1", "-o", str(tmp_path / "run")]
    assert command(arguments) == 0
    assert "features compared at 1/2, 1/4, 1/8" in capsys.readouterr().out
    assert checkpoint.load(tmp_path / "run/final").name == "gunet_t"
    assert command(arguments) == 1 and "holds a run" in capsys.readouterr().err
    arguments[arguments.index("gunet_t")] = "gunet_x"
    assert command([*arguments[:-1], str(tmp_path / "other")]) == 1 and "gunet_x" in capsys.readouterr().err
