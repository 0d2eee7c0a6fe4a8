"""Files in 8 bits: which convolutions became integer, with which ranges, and that a costly loss is refused."""

import shutil

import numpy as np
import pytest
import torch

from restore import RestoreError, create_model, quantize
from restore.export import export
from restore.runtimes import FileNetwork

onnx = pytest.importorskip("onnx", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxruntime", reason="the extra [onnx] is not installed")
pytest.importorskip("onnxscript", reason="the extra [onnx] is not installed")
DEPTH, SIZE = (1, 1, 1, 3), (24, 32)
pytestmark = pytest.mark.timeout(900)


@pytest.fixture(scope="module")
def pairs():
    generator = torch.Generator().manual_seed(0)
    return [(torch.rand(3, *SIZE, generator=generator), torch.rand(3, *SIZE, generator=generator)) for _ in range(4)]


@pytest.fixture(scope="module")
def files(pairs, tmp_path_factory):
    """The same network in floating point and in 8 bits."""
    torch.manual_seed(0)
    model = create_model("anydepth", width=(4, 4, 8, 8)).eval()
    folder = tmp_path_factory.mktemp("quantize")
    export(model, folder / "float.onnx", "onnx", DEPTH, SIZE)
    with pytest.MonkeyPatch.context() as patch:              # the file above, exported once for all tests
        patch.setattr("restore.export.export", lambda _, path, *rest, **more: shutil.copyfile(folder / "float.onnx", path))
        before, after = quantize.export_int8(model, folder / "int8.onnx", pairs, DEPTH, SIZE, most_loss=10)
    return folder / "float.onnx", folder / "int8.onnx", before, after


def convolutions(file):
    """Of each convolution of a graph, in order: whether its input comes out of 8 bits, the scale of that, its weight."""
    graph = onnx.load(file).graph
    made = {name: node for node in graph.node for name in node.output}
    numbers = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    rows = []
    for node in graph.node:
        if node.op_type == "Conv":
            source = made.get(node.input[0])
            integer = source is not None and source.op_type == "DequantizeLinear"
            rows.append((integer, float(numbers[source.input[1]]) if integer else None, node.input[1]))
    return rows


def test_all_but_the_first_and_the_last_convolution(files):
    plain, rows = convolutions(files[0]), convolutions(files[1])
    assert len(rows) == len(plain) and not any(integer for integer, *_ in plain)
    assert [integer for integer, *_ in rows] == [False, *[True] * (len(rows) - 2), False]


def test_attention_stays_in_floating_point(tmp_path):
    """A graph of a convolution, attention and two convolutions, made by hand."""
    from onnx import TensorProto, helper
    from onnx.numpy_helper import from_array
    weights = [from_array(np.random.default_rng(i).standard_normal((3, 3, 1, 1)).astype(np.float32), f"w{i}") for i in range(3)]
    nodes = [helper.make_node("Conv", ["image", "w0"], ["a"], "first"), helper.make_node("MatMul", ["a", "a"], ["b"], "product"),
             helper.make_node("Softmax", ["b"], ["c"], "normalised"), helper.make_node("Conv", ["c", "w1"], ["d"], "middle"),
             helper.make_node("Add", ["d", "a"], ["e"], "sum"), helper.make_node("Conv", ["e", "w2"], ["restored"], "last")]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1, 3, 8, 8]) for name in ("image", "restored")]
    onnx.save(helper.make_model(helper.make_graph(nodes, "g", ends[:1], ends[1:], weights), ir_version=10,
                                opset_imports=[helper.make_opsetid("", 18)]), tmp_path / "g.onnx")
    quantize._quantize(tmp_path / "g.onnx", tmp_path / "q.onnx", [np.ones((1, 3, 8, 8), np.float32)])
    made = {name: node.op_type for node in onnx.load(tmp_path / "q.onnx").graph.node for name in node.output}
    integer = {node.name for node in onnx.load(tmp_path / "q.onnx").graph.node if made.get(node.input[0]) == "DequantizeLinear"}
    assert integer & {"first", "product", "normalised", "middle", "last"} == {"middle"}


def test_each_iteration_has_a_range_of_its_own(files):
    by_weight = {}
    for integer, scale, weight in convolutions(files[1]):
        if integer:
            by_weight.setdefault(weight, []).append(scale)
    repeated = [scales for scales in by_weight.values() if len(scales) == DEPTH[3]]
    assert len(repeated) == 2                                                 # the latent's two convolutions, three times each
    assert all(len(set(scales)) == DEPTH[3] for scales in repeated)


def test_result_is_near_and_measured_on_images_that_did_not_calibrate(files, pairs):
    from skimage.metrics import peak_signal_noise_ratio
    outputs = []
    for file, said in zip(files[:2], files[2:]):
        network = FileNetwork(file)
        outputs.append([network(given[None])[0] for given, _ in pairs])
        held = [peak_signal_noise_ratio(target.numpy(), out.clamp(0, 1).numpy(), data_range=1)
                for out, (_, target) in list(zip(outputs[-1], pairs))[1::2]]
        assert said == pytest.approx(np.mean(held), abs=1e-4)
    assert all(0 < (a - b).abs().max() < 0.1 for a, b in zip(*outputs))
    facts = FileNetwork(files[1]).facts
    assert facts["precision"] == "int8" and float(facts["int8_loss_db"]) == pytest.approx(files[2] - files[3], abs=1e-3)


def test_a_costly_loss_is_refused(files, pairs, tmp_path, monkeypatch):
    monkeypatch.setattr("restore.export.export", lambda model, path, *rest, **more: path.write_bytes(files[0].read_bytes()))
    model = create_model("anydepth", width=(4, 4, 8, 8))
    with pytest.raises(RestoreError, match="not written, since 8 bits lose"):
        quantize.export_int8(model, tmp_path / "m.onnx", pairs, DEPTH, SIZE, most_loss=-1)
    with pytest.raises(RestoreError, match="at least two images"):
        quantize.export_int8(model, tmp_path / "m.onnx", pairs[:1], DEPTH, SIZE)
    with pytest.raises(RestoreError, match="ends in .onnx"):
        quantize.export_int8(model, tmp_path / "m.xml", pairs)
    assert not list(tmp_path.iterdir())


def test_pairs_of_a_folder(tmp_path):
    import cv2
    for name, shape in (("a", (50, 60)), ("b", (20, 90))):
        for side in ("input", "target"):
            (tmp_path / "own" / side).mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / "own" / side / f"{name}.png"), np.full((*shape, 3), 100 if side == "input" else 200, np.uint8))
    pairs = quantize.read_pairs(tmp_path / "own", (30, 40))                   # b is too small
    assert len(pairs) == 1 and pairs[0][0].shape == (3, 30, 40)
    assert torch.allclose(pairs[0][0], torch.tensor(100 / 255)) and torch.allclose(pairs[0][1], torch.tensor(200 / 255))
    noisy = quantize.read_pairs(tmp_path / "own" / "target")
    assert [tuple(target.shape) for _, target in noisy] == [(3, 50, 60), (3, 20, 90)]
    assert (noisy[0][0] - noisy[0][1]).std().item() * 255 == pytest.approx(25, rel=0.15)
    with pytest.raises(RestoreError, match="no images of at least"):
        quantize.read_pairs(tmp_path / "own", (300, 300))
