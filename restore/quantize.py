"""An exported ONNX file in 8 bits: integer convolutions, calibrated on images of the user's, the loss measured.

What is special here: a file is one depth, its loops unrolled, so every iteration of a shared block has activations of
its own in the graph and gets ranges of its own; the weights are stored once. Only convolutions become integer, and of
these not the first and not the last: quantising either, or the normalisation and the products of attention, destroys
a restoration (arXiv 2511.00682). Weights have a scale for each output channel.
"""

import logging
import shutil
import tempfile
from pathlib import Path

import torch

from .errors import RestoreError
from .files import atomic_path, list_images, paired_files
from .metrics import psnr
from .models.base import pad_to_multiple

CROPS = 24                                   # at most: half of them calibrate, the other half measure the loss
SIDE = 192                                   # of a crop, on a file of dynamic size


def export_int8(model, path, pairs, depth=None, size=None, licence="Apache-2.0", most_loss=0.3):
    """Write ``model`` at ``depth`` as an ONNX file in 8 bits; returns ``(PSNR in floating point, in 8 bits)`` in dB.

    ``pairs``: at least two ``(input, target)`` tensors (3, h, w) in [0, 1], see :func:`read_pairs`; every other one calibrates,
    the rest are what the two PSNR (means over images) are measured on. ``size`` and ``licence`` as in
    :func:`restore.export.export`. Raises :class:`RestoreError`, and writes nothing, if more than ``most_loss`` dB are lost,
    for fewer pairs, or if what is needed is not installed.
    """
    from .export import export
    from .runtimes import FileNetwork
    path = Path(path)
    if path.suffix != ".onnx":
        raise RestoreError(f"{path}: --int8 writes ONNX files, give a name that ends in .onnx")
    if len(pairs) < 2:
        raise RestoreError("--int8: give at least two images: some calibrate, the others measure what is lost")
    with tempfile.TemporaryDirectory() as folder:
        floating, integer = Path(folder) / "float.onnx", Path(folder) / "int8.onnx"
        export(model, floating, "onnx", depth, size, licence=licence)
        _quantize(floating, integer, [_padded(given, model, size) for given, _ in pairs[::2]])
        before, after = (_mean_psnr(FileNetwork(file), pairs[1::2]) for file in (floating, integer))
        if not before - after <= most_loss:
            raise RestoreError(f"{path}: not written, since 8 bits lose {before - after:.2f} dB ({before:.2f} -> {after:.2f}), more than "
                               f"--max-loss {most_loss}")
        _note(integer, {"anydepth.precision": "int8", "anydepth.int8_loss_db": f"{before - after:.3f}"})
        with atomic_path(path) as temporary:
            shutil.copyfile(integer, temporary)
    return before, after


def _quantize(source, target, images):
    """Calibrate the file ``source`` on ``images``, arrays (1, 3, h, w), and write it in 8 bits to ``target``."""
    try:
        from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    except ImportError as error:
        raise RestoreError(f"--int8 needs {error.name}: pip install 'anydepth[onnx]'") from error
    logging.disable(logging.WARNING)         # it advises a pass that does nothing for these graphs
    try:
        quantize_static(source, target, _Reader(images), quant_format=QuantFormat.QDQ, op_types_to_quantize=["Conv"],
                        nodes_to_exclude=_ends(source), per_channel=True, activation_type=QuantType.QUInt8,
                        weight_type=QuantType.QInt8,
                        reduce_range=True)   # 7-bit weights: without VNNI, sums of 8-bit products saturate in 16 bits
    finally:
        logging.disable(logging.NOTSET)


class _Reader:
    """What onnxruntime's calibration asks for: one input after the other, then None."""

    def __init__(self, images):
        self.images = iter(images)

    def get_next(self):
        image = next(self.images, None)
        return None if image is None else {"image": image}


def _ends(file):
    """The names of the first and the last convolution of a graph."""
    import onnx
    convolutions = [node.name for node in onnx.load(file, load_external_data=False).graph.node if node.op_type == "Conv"]
    return [convolutions[0], convolutions[-1]]


def _padded(image, model, size):
    """``image`` (3, h, w) as the file takes it: an array (1, 3, h, w), its sides multiples unless the file has one size."""
    if size is None:
        image = pad_to_multiple(image[None], model.multiple, max(model.minimum, 3 * model.multiple))
    return image.reshape(1, 3, *image.shape[-2:]).numpy()


def _note(file, metadata):
    """Add ``metadata``, texts by name, to that of the ONNX file."""
    import onnx
    proto = onnx.load(file)
    onnx.helper.set_model_props(proto, {**{entry.key: entry.value for entry in proto.metadata_props}, **metadata})
    onnx.save(proto, file)


def _mean_psnr(network, pairs):
    restored = [psnr(network(given[None])[0].clamp(0, 1), target) for given, target in pairs]
    return sum(restored) / len(restored)


def read_pairs(folder, size=None):
    """Up to ``CROPS`` pairs ``(input, target)`` of tensors from the middles of the images in ``folder``.

    A folder with ``input/`` and ``target/`` (equal names) is taken as it is; of any other folder the images are the targets,
    and the inputs get Gaussian noise of sigma 25 (0..255 scale), one seed an image. ``size``: of the crops (for a file of
    fixed size; smaller images are then skipped). Raises :class:`RestoreError`.
    """
    from .degradations.noise import gaussian
    from .image import read_image
    folder = Path(folder)
    own = (folder / "input").is_dir() and (folder / "target").is_dir()
    files = paired_files(folder) if own else [(None, path) for path in list_images(folder)]
    height, width = size or (SIDE, SIDE)
    pairs = []
    for index, (given, wanted) in enumerate(files[::max(1, len(files) // CROPS)][:CROPS]):
        target = read_image(wanted).pixels
        image = read_image(given).pixels if own else gaussian(target, torch.Generator().manual_seed(index))
        if image.shape != target.shape:
            raise RestoreError(f"{given} and {wanted} differ in size")
        top, left = (max(0, side - part) // 2 for side, part in zip(target.shape[1:], (height, width)))
        image, target = (t[:, top:top + height, left:left + width] for t in (image, target))
        if not size or tuple(target.shape[1:]) == tuple(size):
            pairs.append((image.contiguous(), target))
    if not pairs:
        raise RestoreError(f"{folder}: no images" + (f" of at least {width} x {height} pixels" if size else "") + " to calibrate with")
    return pairs
