"""Networks as files for other runtimes: ONNX, OpenVINO or torch.export, checked against the network before they count.

A file is one depth. Its input and its output are ``image``, float32 (1, 3, h, w) in [0, 1], the output not clamped; a
file of dynamic size needs sides that are multiples of ``multiple`` and at least ``minimum``, which its metadata tells:
pad the image at the right and the bottom by reflection, and crop the result.
"""

import json
import shutil
import tempfile
import warnings
from pathlib import Path

import torch
from torch import nn

from .depth import count_macs, format_depth
from .errors import RestoreError
from .files import atomic_path
from .footprint import measure

FORMATS = {"onnx": ".onnx", "openvino": ".xml", "torch": ".pt2"}
TOLERANCE = {"fp32": 1e-4, "fp16": 5e-3}     # of the largest change that the network makes to the image


class AtDepth(nn.Module):
    """A network at one depth; on a fixed size with its padding, on a dynamic one without."""

    def __init__(self, model, depth, padded):
        super().__init__()
        self.model, self.repeats, self.padded = model, model.repeats(depth), padded

    def forward(self, image):
        if self.padded:
            return self.model(image, self.repeats or None)
        return self.model.restore(image, self.repeats)


def export(model, path, file_format, depth=None, size=None, precision="fp32", licence="Apache-2.0"):
    """Write ``model`` at ``depth`` to ``path`` and return the largest error of the file's output, in parts of the change.

    ``file_format``: a key of ``FORMATS``. ``size``: (height, width), or None for dynamic sizes. ``precision``: ``"fp32"``, or
    ``"fp16"`` for weights stored in 16 bits and computed with in 32 (ONNX and OpenVINO). The file is opened in its runtime and
    compared at two sizes (a fixed size: on two images); :class:`RestoreError` if it differs by more than ``TOLERANCE`` or
    if the runtime is not installed, and then nothing is written.
    """
    from .models.gunet import GUNet, fold_batchnorm

    path = Path(path)
    suffix = FORMATS[file_format]
    if path.suffix != suffix:
        raise RestoreError(f"{path}: a file of format {file_format} ends in {suffix}")
    if file_format == "torch" and precision != "fp32":
        raise RestoreError("--precision fp16: the torch format takes fp32; onnx and openvino take fp16")
    model = model.to("cpu").eval()
    metadata = describe(model, depth, size, licence)
    network = AtDepth(fold_batchnorm(model) if isinstance(model, GUNet) else model, depth, padded=size is not None).eval()
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        made = Path(folder) / path.name
        _WRITERS[file_format](network, made, size or _sizes(model)[0], size is None, precision, metadata)
        error = parity(model, made, depth, [size, size] if size else _sizes(model))
        if error > TOLERANCE[precision]:
            raise RestoreError(f"{path}: not written, since the {file_format} file's output differs from the network's by "
                               f"{error:.1e} of the change, more than {TOLERANCE[precision]:.0e}")
        for part in sorted(made.parent.iterdir(), key=lambda p: p == made):      # an .xml last, once its .bin is there
            with atomic_path(path.with_name(part.name)) as temporary:
                shutil.copyfile(part, temporary)
    return error


def describe(model, depth, size, licence):
    """The metadata of an exported file: texts by name."""
    fixed, per_pixel = measure(model, depth, 8 * model.multiple, 16 * model.multiple)
    side = 16 * model.multiple
    facts = {"model": model.name, "depth": format_depth(model.repeats(depth)) or "fixed", "range": "0..1, RGB, NCHW, not clamped",
             "multiple": 1 if size else model.multiple, "minimum": 1 if size else model.minimum,
             "size": f"{size[0]}x{size[1]}" if size else "dynamic", "license": licence,
             "macs_per_pixel": count_macs(model, side, side, depth) / side**2, "bytes_fixed": fixed, "bytes_per_pixel": per_pixel}
    return {f"anydepth.{key}": str(value) for key, value in facts.items()}


def parity(model, file, depth, sizes):
    """The largest difference between ``file`` in its runtime and the plain network on images of ``sizes``, in parts of the
    largest change that the network makes to them."""
    from .runtimes import FileNetwork
    generator, worst = torch.Generator().manual_seed(0), 0.0
    network = FileNetwork(file)
    for height, width in sizes:
        image = torch.rand(1, 3, height, width, generator=generator)
        expected = model(image, depth)
        error = (network(image) - expected).abs().max() / (expected - image).abs().max().clamp_min(1e-3)
        worst = max(worst, error.item() if torch.isfinite(error) else float("inf"))
    return worst


def _sizes(model):
    """Two sizes for a check: of different shape, one wide and one tall."""
    return (4 * model.multiple, 6 * model.multiple), (10 * model.multiple, 5 * model.multiple)


def _dimensions(network, dynamic):
    """The dynamic shapes of torch.export: sides in whole multiples."""
    if not dynamic:
        return None
    multiple = network.model.multiple
    return {"image": {2: multiple * torch.export.Dim("rows", min=3, max=4096), 3: multiple * torch.export.Dim("columns", min=3, max=4096)}}


def _write_torch(network, file, size, dynamic, precision, metadata):
    program = torch.export.export(network, (torch.rand(1, 3, *size),), dynamic_shapes=_dimensions(network, dynamic))
    torch.export.save(program, file, extra_files={"anydepth.json": json.dumps(metadata)})


def _write_onnx(network, file, size, dynamic, precision, metadata):
    try:
        import onnx
        import onnxscript  # noqa: F401
    except ImportError as error:
        raise RestoreError(f"exporting to ONNX needs {error.name}: pip install 'anydepth[onnx]'") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        program = torch.onnx.export(network, (torch.rand(1, 3, *size),), dynamo=True, verbose=False, input_names=["image"],
                                    output_names=["restored"], dynamic_shapes=_dimensions(network, dynamic))
    proto = program.model_proto
    if precision == "fp16":
        _halve_weights(proto)
    onnx.helper.set_model_props(proto, metadata)
    onnx.checker.check_model(proto)
    onnx.save(proto, file)


def _halve_weights(proto):
    """Store the large float32 weights as float16, each followed by a cast that runtimes fold away when they load."""
    import numpy as np
    from onnx import TensorProto, helper, numpy_helper
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT and np.prod(tensor.dims) > 256:
            name = tensor.name
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype(np.float16), name + ".fp16"))
            casts.append(helper.make_node("Cast", [name + ".fp16"], [name], to=TensorProto.FLOAT))
    nodes = list(proto.graph.node)
    del proto.graph.node[:]
    proto.graph.node.extend(casts + nodes)


def _write_openvino(network, file, size, dynamic, precision, metadata):
    try:
        import openvino
    except ImportError as error:
        raise RestoreError("exporting to OpenVINO needs openvino: pip install 'anydepth[openvino]'") from error
    with tempfile.TemporaryDirectory() as folder:
        _write_onnx(network, Path(folder) / "network.onnx", size, dynamic, "fp32", metadata)
        converted = openvino.convert_model(Path(folder) / "network.onnx")
    for key, value in metadata.items():
        converted.set_rt_info(value, key.split("."))
    openvino.save_model(converted, file, compress_to_fp16=precision == "fp16")


_WRITERS = {"onnx": _write_onnx, "openvino": _write_openvino, "torch": _write_torch}
