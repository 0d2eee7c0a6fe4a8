"""Exported files: the same restoration as the network's, from a process that has neither torch nor this package."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from test_models import TINY

from restore import RestoreError, Restorer, create_model, save
from restore.cli import main
from restore.export import export
from restore.runtimes import FileNetwork

DEPTH = (1, 2, 1, 1)
EXAMPLE = Path(__file__).resolve().parents[1] / "examples" / "run_onnx.py"
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    network = create_model("dynet", **TINY["dynet"]).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.05)
    network.provenance = {}
    return network


@pytest.fixture(scope="module")
def onnx_file(model, tmp_path_factory):
    for name in ("onnx", "onnxruntime", "onnxscript"):
        pytest.importorskip(name, reason="the extra [onnx] is not installed")
    path = tmp_path_factory.mktemp("export") / "model.onnx"
    assert export(model, path, "onnx", DEPTH) < 1e-4
    return path


def same_as_plain(network, model, image, depth, tolerance=1e-4):
    with torch.no_grad():
        expected = model(image, depth)
        return (network(image) - expected).abs().max() <= tolerance * (expected - image).abs().max()


@pytest.mark.parametrize("size", [(1, 3, 1, 1), (2, 3, 37, 50), (1, 3, 8, 136)], ids=str)
def test_onnx_takes_every_size(model, onnx_file, size):
    image = torch.rand(size, generator=torch.Generator().manual_seed(1))
    assert same_as_plain(FileNetwork(onnx_file), model, image, DEPTH)


def test_onnx_metadata(model, onnx_file):
    facts = FileNetwork(onnx_file).facts
    assert facts["depth"] == "1,2,1,1" and facts["license"] == "Apache-2.0" and facts["range"].startswith("0..1")
    assert (int(facts["multiple"]), int(facts["minimum"])) == (model.multiple, model.minimum)
    with pytest.raises(RestoreError, match="exported at depth 1,2,1,1"):
        FileNetwork(onnx_file).repeats("large")


def test_example_without_torch_and_without_us(model, onnx_file, tmp_path):
    from PIL import Image
    pixels = np.random.default_rng(0).integers(0, 256, (45, 52, 3), np.uint8)
    Image.fromarray(pixels).save(tmp_path / "in.png")
    blocked = "import sys; sys.modules['torch'] = sys.modules['restore'] = None; sys.argv = sys.argv[1:]; "
    run = f"{blocked}exec(open(sys.argv[0]).read())"
    subprocess.run([sys.executable, "-c", run, str(EXAMPLE), str(onnx_file), str(tmp_path / "in.png"), str(tmp_path / "out.png")],
                   check=True, cwd=tmp_path)
    ours = Restorer(model, depth=DEPTH, device="cpu")(pixels)
    difference = np.abs(ours.astype(int) - np.asarray(Image.open(tmp_path / "out.png")).astype(int))
    assert difference.max() <= 1                     # rounding to 8 bits may fall to either side


def test_restorer_runs_a_file(model, onnx_file):
    image = torch.rand(3, 40, 60, generator=torch.Generator().manual_seed(2))
    expected = Restorer(model, depth=DEPTH, device="cpu").restore(image)
    from_file = Restorer(onnx_file)
    assert torch.allclose(from_file.restore(image), expected, atol=1e-4)
    assert Restorer(onnx_file, memory="500MB").tile(4000, 4000) != (4000, 4000)      # it is cut like any other


def test_restorer_exports_for_a_runtime(model, onnx_file, tmp_path, monkeypatch):
    import shutil

    import restore.export
    monkeypatch.setenv("ANYDEPTH_CACHE", str(tmp_path))
    made = []
    monkeypatch.setattr(restore.export, "export", lambda network, path, *rest: (
        made.append(path), path.parent.mkdir(parents=True, exist_ok=True), shutil.copyfile(onnx_file, path)))
    image = torch.rand(3, 40, 60)
    for _ in range(2):
        out = Restorer(model, depth=DEPTH, device="cpu", runtime="onnxruntime").restore(image)
    assert len(made) == 1                            # the second time it is in the cache
    assert torch.allclose(out, Restorer(model, depth=DEPTH, device="cpu").restore(image), atol=1e-4)
    with pytest.raises(RestoreError, match="runtime 'tvm'"):
        Restorer(model, device="cpu", runtime="tvm")


def test_auto_takes_the_fastest(model, monkeypatch):
    from restore import budget, runtimes
    monkeypatch.setattr(runtimes, "installed", lambda: ["torch", "onnxruntime"])
    monkeypatch.setattr(runtimes, "converted", lambda network, *rest: network)
    for fastest, times in (("torch", {"torch": 1, "onnxruntime": 2}), ("onnxruntime", {"torch": 2, "onnxruntime": 1})):
        monkeypatch.setattr(budget, "measured_seconds", lambda restorer, times=times: times[restorer.runtime])
        assert Restorer(model, device="cpu", runtime="auto").runtime == fastest


def test_a_file_that_differs_is_not_written(model, tmp_path, monkeypatch):
    from restore import export as module
    monkeypatch.setitem(module._WRITERS, "onnx", lambda network, file, *rest: file.write_bytes(b"x"))
    monkeypatch.setattr(module, "parity", lambda *rest: 2e-4)
    with pytest.raises(RestoreError, match="not written"):
        export(model, tmp_path / "m.onnx", "onnx")
    assert not list(tmp_path.iterdir())


def test_damaged_and_foreign_files(tmp_path):
    pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
    (tmp_path / "m.onnx").write_bytes(b"nothing")
    for path, says in ((tmp_path / "m.onnx", "cannot be opened"), (tmp_path / "none.onnx", "no such file")):
        with pytest.raises(RestoreError, match=says):
            Restorer(path)


def test_command_names_what_is_wrong(model, tmp_path, capsys):
    save(model, tmp_path / "m.safetensors")
    for output, says in (("m.pb", "ends in"), ("m.onnx --size 5", "--size 5"), ("m.onnx --format torch", "ends in .pt2")):
        assert main(["export", str(tmp_path / "m.safetensors"), "-o", *f"{tmp_path}/{output}".split()]) == 1
        assert says in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dynet", "gunet_t"])
@pytest.mark.parametrize("size", [None, (45, 51)], ids=["dynamic", "fixed"])
@pytest.mark.parametrize("file_format, suffix, precision", [("onnx", ".onnx", "fp32"), ("onnx", ".onnx", "fp16"),
                                                           ("openvino", ".xml", "fp32"), ("torch", ".pt2", "fp32")])
def test_every_format(name, size, file_format, suffix, precision, tmp_path):
    if file_format == "openvino":
        pytest.importorskip("openvino", reason="the extra [openvino] is not installed")
    network = create_model(name, **TINY[name]).eval()
    path = tmp_path / f"m{suffix}"
    export(network, path, file_format, size=size, precision=precision)
    image = torch.rand(1, 3, *(size or (37, 50)))
    assert same_as_plain(FileNetwork(path), network, image, None, 1e-4 if precision == "fp32" else 5e-3)
