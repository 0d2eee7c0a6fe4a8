"""What comes from elsewhere: checkpoints of any family, ONNX files of any maker, folders of somebody's outputs."""

from pathlib import Path

import numpy as np

from .errors import CheckpointError, RestoreError
from .files import IMAGE_SUFFIXES


def load_network(what):
    """The network of one of our checkpoints or of a published one, else spandrel's ``ImageModelDescriptor`` of the file.

    ``what`` is a path or a bundled name. A descriptor is called with a batch (n, 3, h, w) in [0, 1] and pads and clamps by
    itself. Raises :class:`RestoreError` for what nobody can load.
    """
    from .checkpoint import import_published, load
    try:
        return load(what)
    except CheckpointError:
        if not Path(what).is_file():
            raise
    try:
        return import_published(what)
    except CheckpointError as error:
        try:
            import spandrel
        except ImportError:
            raise RestoreError(f"{error} Other architectures need spandrel: pip install spandrel") from error
        try:
            return spandrel.ModelLoader().load_from_file(str(what))
        except Exception as unknown:          # spandrel raises its own, torch's and pickle's errors
            raise RestoreError(f"{error} Nor does spandrel load it: {in_short(unknown)}") from unknown


class OnnxNetwork:
    """An ONNX file with one image input (1, 3, h, w) in [0, 1] and one such output, run by onnxruntime on the CPU.

    Raises :class:`RestoreError` where onnxruntime is missing, or for a file that it does not read.
    """

    def __init__(self, path):
        try:
            import onnxruntime
        except ImportError as error:
            raise RestoreError(f"{path}: an ONNX file needs onnxruntime: pip install onnxruntime") from error
        try:
            self.session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        except Exception as error:            # onnxruntime's own exception types derive from Exception alone
            raise RestoreError(f"{path}: not an ONNX model: {in_short(error)}") from error
        self.path, self.version = Path(path), onnxruntime.__version__
        self.input = self.session.get_inputs()[0]

    def __call__(self, image):
        """Array (1, 3, h, w), uint8 or float32 in [0, 1], to the same in float32; raises what onnxruntime raises."""
        half = "float16" in self.input.type
        x = image.astype(np.float16 if half else np.float32)
        if image.dtype == np.uint8:
            x /= np.float16(255) if half else np.float32(255)
        return self.session.run(None, {self.input.name: x})[0].astype(np.float32)


def find_output(folders, name):
    """The first of ``NAME.png``, ``NAME.npy`` or another image in ``folders``; raises :class:`RestoreError` naming them."""
    for folder in folders:
        for suffix in (".png", ".npy", *IMAGE_SUFFIXES):
            if (path := Path(folder) / f"{name}{suffix}").is_file():
                return path
    raise RestoreError(f"no {name}.png (nor another image, nor .npy) in {' or '.join(map(str, folders))}")


def read_output(path):
    """Somebody's restored image: uint8, uint16 or float (in [0, 1]) RGB ``(h, w, 3)`` of an image file or a ``.npy`` array."""
    path = Path(path)
    if path.suffix == ".npy":
        try:
            output = np.load(path)
        except ValueError as error:
            raise RestoreError(f"{path}: not a readable array: {error}") from error
        if output.ndim == 3 and output.shape[0] == 3 and output.shape[2] != 3:
            output = output.transpose(1, 2, 0)
    else:
        import cv2
        output = cv2.imread(str(path), cv2.IMREAD_COLOR | cv2.IMREAD_ANYDEPTH)
        if output is None:
            raise RestoreError(f"{path}: cannot be read as an image")
        output = output[..., ::-1]
    if output.ndim != 3 or output.shape[2] != 3 or output.dtype.kind not in "uf":
        raise RestoreError(f"{path}: needs (height, width, 3) of uint8, uint16 or float, not {output.shape} "
                           f"of {output.dtype}")
    return output


def to_8_bits(output):
    """What :func:`read_output` gives, on the 256 levels of an ordinary image, uint8."""
    if output.dtype == np.uint8:
        return output
    scale = 255 / np.iinfo(output.dtype).max if output.dtype.kind == "u" else 255
    return np.clip(np.rint(output * scale), 0, 255).astype(np.uint8)


def in_short(error):
    """An exception of somebody else's library in one line."""
    return f"{type(error).__name__} {' '.join(str(error).split())[:200]}".strip()
