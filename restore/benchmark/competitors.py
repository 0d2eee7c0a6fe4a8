"""Everything that can be scored behind one interface: networks of any origin, baselines, functions, folders of results.

``--model`` takes ``[NAME=]WHAT``, where WHAT is a bundled name or checkpoint of ours, a published checkpoint (``.pth``,
``.ckpt``), an ``.onnx`` file, ``FILE.py:function``, or a baseline (``input``, ``median``, ``nlm``, ``bm3d``, ``dcp``).
"""

import hashlib
import inspect
import time
from pathlib import Path

import numpy as np

from .. import foreign
from ..errors import RestoreError
from . import classical


class Competitor:
    """One row of the table.

    ``name`` is what the row is called, ``key`` a content hash of all that decides its outputs, ``depth`` the name or
    repeats of a depth, ``parameters`` a count or None. :meth:`restore` is what is timed.
    """

    kind = ""
    depth = None
    parameters = None
    note = ""                                 # what a reader must know of its numbers
    runs = True                               # False where outputs are only read

    def __init__(self, name, key, source):
        self.name, self.key, self.source = name, key, source

    def restore(self, image, entry):
        """``(output, seconds)`` for an :class:`~restore.benchmark.inputs.Input` of ``entry``.

        The output is uint8, uint16 or float RGB ``(h, w, 3)``; the time is synchronised with the device and leaves out
        the transfer to and from it.
        """
        start = time.perf_counter()
        output = self.apply(image, entry)
        return output, time.perf_counter() - start

    def apply(self, image, entry):
        raise NotImplementedError(type(self).__name__)

    def macs(self, height, width):
        """Multiply-accumulates of one image, or None where nobody can count them."""
        return

    def image_key(self, image, entry):
        """What besides ``key`` decides the output of this image."""
        return ""


class Network(Competitor):
    """A network of ours at one depth, in float32, whole images: tiles only where memory runs out, and then it is said."""

    kind = "network"

    def __init__(self, name, model, source, depth, device):
        from ..depth import count_parameters, format_depth
        from ..restorer import Restorer
        self.restorer = Restorer(model, depth, device, memory="unlimited")
        self.model, self.device, repeats = self.restorer.model, self.restorer.device, self.restorer.depth
        super().__init__(name, _hash(_model_hash(model), repr(repeats), _device_name(self.device)), source)
        self.depth = format_depth(depth if depth is not None else model.default_depth)
        self.parameters = count_parameters(model)

    def restore(self, image, entry):
        pixels = _tensor(image, self.device)
        _synchronise(self.device)
        start = time.perf_counter()
        restored = self.restorer.restore(pixels)
        _synchronise(self.device)
        seconds = time.perf_counter() - start
        if self.restorer.count_tiles(*pixels.shape[1:]) > 1:
            self.note = "run in tiles on some images, since memory ran out: its numbers differ slightly from the whole's"
        return restored.permute(1, 2, 0).cpu().numpy(), seconds

    def macs(self, height, width):
        from ..depth import count_macs
        return count_macs(self.model, height, width, self.restorer.depth)


class Spandrel(Competitor):
    """A network that the optional package spandrel loads; it pads and clamps by itself."""

    kind = "spandrel"

    def __init__(self, name, descriptor, source, device):
        super().__init__(name, _hash(_model_hash(descriptor.model), _device_name(device)), source)
        self.descriptor, self.device = descriptor.to(device).eval(), device
        self.parameters = sum(p.numel() for p in descriptor.model.parameters())

    def restore(self, image, entry):
        import torch
        x = _tensor(image, self.device)[None]
        with torch.inference_mode():
            _synchronise(self.device)
            start = time.perf_counter()
            y = self.descriptor(x)
            _synchronise(self.device)
            seconds = time.perf_counter() - start
        return y[0].float().permute(1, 2, 0).cpu().numpy(), seconds

    def macs(self, height, width):
        import copy

        import torch
        from torch.utils.flop_counter import FlopCounterMode
        try:
            counter = FlopCounterMode(display=False)
            with counter, torch.no_grad():
                copy.deepcopy(self.descriptor.model).to("meta")(torch.empty(1, 3, height, width, device="meta"))
            return counter.get_total_flops() // 2
        except (RuntimeError, NotImplementedError, TypeError, ValueError):    # needs data to run
            return None


class Onnx(Competitor):
    """An ONNX file with one image input (1, 3, h, w) in [0, 1] and one such output, run by onnxruntime on the CPU."""

    kind = "onnx"

    def __init__(self, name, path):
        self.network = foreign.OnnxNetwork(path)
        super().__init__(name, _hash(_file_hash(path), self.network.version), str(path))

    def apply(self, image, entry):
        return self.network(np.ascontiguousarray(image.degraded.transpose(2, 0, 1))[None])[0].transpose(1, 2, 0)


class Function(Competitor):
    """A Python function of ``(image)``, float32 RGB ``(h, w, 3)`` in [0, 1]; it may also take task, sigma and name."""

    kind = "function"

    def __init__(self, name, path, function):
        super().__init__(name, _hash(_file_hash(path), function.__name__), f"{path}:{function.__name__}")
        self.function = function
        accepted = inspect.signature(function).parameters
        self.wanted = [key for key in ("task", "sigma", "name") if key in accepted]

    def apply(self, image, entry):
        known = {"task": entry.set.task, "sigma": entry.sigma, "name": image.name}
        return np.asarray(self.function(image.degraded.astype(np.float32) / 255, **{k: known[k] for k in self.wanted}))

    def image_key(self, image, entry):
        return image.name if "name" in self.wanted else ""


class Classical(Competitor):
    """A baseline of :mod:`restore.benchmark.classical`."""

    kind = "baseline"

    def __init__(self, name, method):
        super().__init__(name, _hash(_file_hash(classical.__file__), method), method)
        self.method = classical.METHODS[method]

    def apply(self, image, entry):
        return self.method(image.degraded, entry.sigma)


class Folder(Competitor):
    """Somebody's outputs: images (8 or 16 bits) or ``.npy`` arrays (floats in [0, 1]) under the names of the inputs.

    They lie in ``DIR/ENTRY/NAME.png`` as ``--write-inputs`` lays them out, or in ``DIR/NAME.png`` where only one entry is run.
    """

    kind = "folder"
    runs = False

    def __init__(self, name, path, alone):
        super().__init__(name, _hash("folder"), str(path))
        self.path, self.alone = Path(path), alone

    def apply(self, image, entry):
        return foreign.read_output(self.find(image.name, entry))

    def find(self, name, entry):
        """The output of one image; raises :class:`RestoreError` naming where it was looked for."""
        return foreign.find_output([self.path / entry.key, *([self.path] if self.alone else [])], name)

    def image_key(self, image, entry):
        return _file_hash(self.find(image.name, entry))


def competitors(models, depths, restored, device, alone, adapters=()):
    """All rows for the command line's ``--model``, ``--depth`` and ``--restored``; ``alone`` says that one entry is run.

    A network is loaded once and appears at every depth asked for; ``all`` means every depth that it names, none of them
    its default. Networks of one fixed depth appear once. A network of ours appears again with each of the ``adapters``, which are
    files. Raises :class:`RestoreError` for what cannot be loaded.
    """
    rows = []
    for text in models:
        name, what = _named(text)
        rows += _open(name, what, depths, device, adapters)
    for text in restored:
        name, what = _named(text)
        if not Path(what).is_dir():
            raise RestoreError(f"--restored {what}: no such folder")
        rows.append(Folder(name or Path(what).name, what, alone))
    names = [row.name for row in rows]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise RestoreError(f"two models are called {twice[0]}; give them names: --model FIRST={twice[0]}")
    return rows


def _named(text):
    name, equals, what = str(text).partition("=")
    return (name, what) if equals and not Path(text).exists() else (None, str(text))


def _open(name, what, depths, device, adapters):
    if what in classical.METHODS:
        return [Classical(name or what, what)]
    file, _, function = what.rpartition(":")
    if file.endswith(".py"):
        return [_function(name, Path(file), function)]
    path = Path(what)
    if path.suffix == ".onnx":
        if not path.is_file():
            raise RestoreError(f"--model {what}: no such file")
        return [Onnx(name or path.stem, path)]
    from ..adapter import load as load_adapter
    model = _load(path, what)
    if not hasattr(model, "repeats"):
        return [Spandrel(name or path.stem, model, what, device)]
    name = name or path.stem
    wanted = []
    for depth in depths if model.depths else []:
        wanted += sorted(model.depths, key=lambda known: sum(model.depths[known])) if depth == "all" else [depth]
    wanted = list(dict.fromkeys(wanted)) or [None]
    networks = [(name, model), *((f"{name}+{Path(file).stem}", load_adapter(file).merged(model)) for file in adapters)]
    return [Network(f"{title}@{depth}" if depth is not None else title, network, what, _parsed(depth), device)
            for title, network in networks for depth in wanted]


def _parsed(depth):
    from ..depth import parse_depth
    return parse_depth(depth)


def _load(path, what):
    try:
        return foreign.load_network(what)
    except RestoreError as error:
        hint = "" if path.is_file() else f". Baselines are {', '.join(classical.METHODS)}."
        raise RestoreError(f"--model {what}: {error}{hint}") from error


def _function(name, path, function):
    import importlib.util
    if not path.is_file():
        raise RestoreError(f"--model {path}:{function}: no such file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:                # the user's own code
        raise RestoreError(f"{path}: fails when imported: {type(error).__name__}: {error}") from error
    if not callable(getattr(module, function, None)):
        raise RestoreError(f"{path}: has no function {function!r}")
    return Function(name or function, path, getattr(module, function))


def _tensor(image, device):
    """The degraded image as float32 ``(3, h, w)`` in [0, 1] on the device."""
    import torch
    return torch.from_numpy(image.degraded).to(device).permute(2, 0, 1).float().div_(255)


def _synchronise(device):
    if str(device).startswith("cuda"):
        import torch
        torch.cuda.synchronize(device)


def _device_name(device):
    import torch
    name = torch.cuda.get_device_name(device) if str(device).startswith("cuda") else str(device)
    return f"{name} torch {torch.__version__}"


def _hash(*parts):
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]


def _file_hash(path):
    return hashlib.sha256(Path(path).read_bytes()).hexdigest()


def _model_hash(model):
    """Content hash of a network: its configuration and every number of its state."""
    digest = hashlib.sha256(repr((type(model).__name__, getattr(model, "config", None))).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()
