"""What restore.benchmark compares: networks at their depths, ONNX files, classical methods, folders of outputs."""

import importlib.util
import itertools

import cv2
import numpy as np
import pytest
from benchmark_sets import FUNCTION, run_suite, save, write_data

from restore.benchmark import catalog, competitors, inputs, locate, protocol, summary
from restore.errors import RestoreError


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path)


def test_restored_folders_of_any_depth_score_like_the_outputs_themselves(data):
    suite = catalog.load_suite(data / "suite.yaml")
    entry = suite.entries[2]
    located = locate.locate(entry.set, [data / "data"])
    count, crc, errors = inputs.write_inputs(entry, located, suite.protocol, data / "written" / entry.key)
    assert (count, errors) == (2, [])
    direct = run_suite(data, ["input", "median"], only=["wet"])
    assert crc == direct.entries[0].crc
    for _, image in inputs.inputs([entry], located, suite.protocol):
        restored = cv2.medianBlur(cv2.imread(str(data / "written" / "wet" / f"{image.name}.png")), 3)
        save(data / "eight" / "wet" / f"{image.name}.png", restored[..., ::-1])
        save(data / "sixteen" / "wet" / f"{image.name}.png", restored[..., ::-1].astype(np.uint16) * 257)
        (data / "floats").mkdir(exist_ok=True)
        np.save(data / "floats" / f"{image.name}.npy", restored[..., ::-1].transpose(2, 0, 1) / 255.0)
    folders = run_suite(data, [], only=["wet"], restored=[data / "eight", data / "sixteen", f"mine={data / 'floats'}"])
    expected = [row["psnr"] for row in direct.rows if row["model"] == "median"]
    for name in ("eight", "sixteen", "mine"):
        assert [row["psnr"] for row in folders.rows if row["model"] == name] == pytest.approx(expected, abs=1e-9)
    (data / "floats" / "1.npy").unlink()
    missing = run_suite(data, [], only=["wet"], restored=[data / "floats"])
    assert len(missing.rows) == 1 and "no 1.png" in missing.failed[0]
    model = summary.summarise(missing, {})["models"][0]
    assert model["entries"]["wet"]["label"] == "partial, 1 of 2"


def test_networks_at_their_depths_and_their_cost(data):
    import torch

    from restore.checkpoint import save as save_checkpoint
    from restore.depth import count_macs
    from restore.models import create_model
    torch.manual_seed(0)
    model = create_model("dynet", width=8, heads=(1, 1, 1, 1), prompt_channels=(8, 8, 8), prompt_sizes=(8, 8, 8),
                         refinement=1).eval()
    save_checkpoint(model, data / "tiny.safetensors")
    results = run_suite(data, [str(data / "tiny.safetensors")], only=["wet"], depths=["all", "1,1,1,1"])
    made = summary.summarise(results, {})
    assert [m["name"] for m in made["models"]] == ["tiny@small", "tiny@large", "tiny@1,1,1,1"]
    result = results.entries[0]
    image = next(inputs.inputs([result.entry], result.located, results.suite.protocol))[1]
    for entry in made["models"]:
        depth = model.depths.get(entry["depth"], (1, 1, 1, 1))
        assert entry["entries"]["wet"]["gmacs"] == count_macs(model, 48, 64, depth) / 1e9
        assert entry["parameters"] == sum(p.numel() for p in model.parameters())
        assert entry["milliseconds"] > 0 and entry["memory_mib"] is not None
        with torch.no_grad():
            x = torch.from_numpy(image.degraded).permute(2, 0, 1)[None] / 255
            output = model(x, depth)[0].permute(1, 2, 0).numpy()
        got = next(row["psnr"] for row in results.rows if row["model"] == entry["name"] and row["image"] == image.name)
        assert got == pytest.approx(protocol.score(output, image.clean, results.suite.protocol)["psnr"], abs=1e-4)


def test_onnx_files_and_baselines(data):
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    shape = [1, 3, "h", "w"]
    ends = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph([onnx.helper.make_node("Mul", ["x", "half"], ["y"])], "g", ends[:1], ends[1:],
                                   [onnx.helper.make_tensor("half", onnx.TensorProto.FLOAT, [], [0.5])])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=9)
    onnx.save(model, data / "half.onnx")
    (data / "f.py").write_text(FUNCTION)
    results = run_suite(data, [str(data / "half.onnx"), f"{data}/f.py:halve", "nlm", "dcp"], only=["wet"])
    by_name = {name: [row["psnr"] for row in results.rows if row["model"] == name] for name in ("half", "halve", "nlm", "dcp")}
    assert results.failed == [] and by_name["half"] == pytest.approx(by_name["halve"], abs=1e-6)
    assert len(by_name["nlm"]) == len(by_name["dcp"]) == 2


def test_classical_baselines_do_their_work():
    from restore.benchmark import classical
    rng = np.random.default_rng(0)
    y, x = np.mgrid[:96, :96]
    clean = np.stack([120 + 80 * np.sin(x / 17) * np.cos(y / 13)] * 3, -1) + [10, 0, -20]
    noisy = np.clip(clean + rng.normal(0, 20, clean.shape), 0, 255).astype(np.uint8)
    assert classical.estimate_sigma(noisy) == pytest.approx(20, rel=0.1)

    def error(image):
        return np.mean((np.asarray(image, float) - clean) ** 2)
    assert error(classical.non_local_means(noisy, 20.0)) < 0.35 * error(noisy)
    assert error(classical.median(noisy, None)) < 0.5 * error(noisy)
    scene = rng.integers(0, 2, (12, 12, 3)).repeat(8, 0).repeat(8, 1) * 160.0
    through = np.full((96, 96, 1), 0.5)
    through[:24] = 0                                              # the sky, where the light of the haze is seen
    hazy = scene * through + 230 * (1 - through)
    restored = classical.dark_channel_prior(hazy.astype(np.uint8), None) * 255
    assert np.mean((restored - scene)[40:] ** 2) < 0.3 * np.mean((hazy - scene)[40:] ** 2)


def test_models_that_cannot_be_had_say_so(data):
    with pytest.raises(RestoreError, match="no such file.*Baselines are input, median"):
        competitors.competitors(["nothing-of-this-name"], [], [], "cpu", True)
    with pytest.raises(RestoreError, match="two models are called median"):
        competitors.competitors(["median", "median"], [], [], "cpu", True)
    (data / "f.py").write_text("def f(image): return image")
    with pytest.raises(RestoreError, match="has no function 'g'"):
        competitors.competitors([f"{data}/f.py:g"], [], [], "cpu", True)


def test_a_bad_onnx_file_says_so_with_and_without_its_runtime(data):
    installed = importlib.util.find_spec("onnxruntime") is not None
    (data / "bad.onnx").write_bytes(b"no")
    with pytest.raises(RestoreError, match=r"bad\.onnx: " + ("not an ONNX model" if installed else ".*pip install onnxruntime")):
        competitors.competitors([str(data / "bad.onnx")], [], [], "cpu", True)


def test_networks_that_spandrel_loads(data):
    pytest.importorskip("spandrel", reason="the optional package spandrel is not installed")
    import torch
    torch.manual_seed(0)
    sizes = [3, *[8] * 19, 3]                                # DnCNN without normalisation: keys model.0, model.2, ...
    state = {}
    for i, (inner, outer) in enumerate(itertools.pairwise(sizes)):
        state |= {f"model.{2 * i}.weight": torch.randn(outer, inner, 3, 3) * 0.01, f"model.{2 * i}.bias": torch.zeros(outer)}
    torch.save(state, data / "dncnn.pth")
    results = run_suite(data, [str(data / "dncnn.pth")], only=["wet"])
    model = summary.summarise(results, {})["models"][0]
    assert results.failed == [] and model["kind"] == "spandrel"
    count = sum(weight.numel() for key, weight in state.items() if key.endswith("weight"))
    assert model["entries"]["wet"]["gmacs"] == count * 48 * 64 / 1e9
