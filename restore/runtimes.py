"""Exported files, run by onnxruntime, OpenVINO or torch, as networks that the Restorer takes like any other."""

import hashlib
import importlib.util
import json
from pathlib import Path

import torch

from .errors import CheckpointError, RestoreError
from .models.base import RestorationModel

RUNTIMES = {"onnxruntime": ".onnx", "openvino": ".xml"}          # beside "torch", and the file that each runs


class FileNetwork(RestorationModel):
    """An exported file (``.onnx``, OpenVINO's ``.xml``, ``.pt2``) as a network of one fixed depth.

    ``precision`` ``"bf16"`` asks OpenVINO to compute so; it would by itself on some processors, and is told not to for
    ``"fp32"``. Raises :class:`RestoreError` for another file, or one that its runtime does not read.
    """

    def __init__(self, path, precision="fp32"):
        super().__init__({"file": Path(path).name})
        path = Path(path)
        if path.suffix not in _OPENERS:
            raise CheckpointError(f"{path}: an exported network ends in {', '.join(_OPENERS)}")
        if not path.is_file():
            raise CheckpointError(f"{path}: no such file")
        if precision != "fp32" and (path.suffix, precision) != (".xml", "bf16"):
            raise RestoreError(f"precision {precision}: {path.name} runs in fp32" + (" or bf16" if path.suffix == ".xml" else ""))
        try:
            self._run, facts = _OPENERS[path.suffix](path, precision)
        except ImportError as error:
            extra = "openvino" if path.suffix == ".xml" else "onnx"
            raise RestoreError(f"{path}: needs {error.name}: pip install 'anydepth[{extra}]'") from error
        except Exception as error:           # each runtime has its own exceptions for a damaged file
            raise CheckpointError(f"{path}: cannot be opened ({str(error).splitlines()[0][:200]}). Export it again.") from error
        if "model" not in facts:
            raise CheckpointError(f"{path}: not written by restore export: it has none of its metadata")
        self.name, self.facts = facts["model"], facts
        self.multiple, self.minimum = int(facts["multiple"]), int(facts["minimum"])
        self.size = None if facts["size"] == "dynamic" else tuple(map(int, facts["size"].split("x")))

    def repeats(self, depth=None):
        """Always ``()``; raises :class:`RestoreError` for another depth than the file's."""
        if depth is not None and str(depth).replace(" ", "").strip("()") != self.facts["depth"]:
            raise RestoreError(f"depth {depth}: this file was exported at depth {self.facts['depth']}; export another one")
        return ()

    def restore(self, x, repeats):
        if x.device.type == "meta":          # its cost is counted, see restore.depth.count_macs
            return torch.empty_like(x)
        if self.size and tuple(x.shape[2:]) != self.size:
            raise RestoreError(f"this file was exported for images of {self.size[1]} x {self.size[0]}, not {x.shape[3]} x "
                               f"{x.shape[2]}; export it with --size dynamic")
        return torch.cat([self._run(image) for image in x.float().split(1)])

    def product_macs(self, shape):
        """Multiply-accumulates for an input of ``shape``, from the file's metadata."""
        return round(float(self.facts["macs_per_pixel"]) * shape[0] * shape[2] * shape[3])

    def footprint(self):
        """Bytes at work as the plain network has them: ``(fixed, per pixel)``."""
        return float(self.facts["bytes_fixed"]), float(self.facts["bytes_per_pixel"])

    def __deepcopy__(self, memo):
        return self                          # a session cannot be copied and holds no weights of ours


def installed():
    """The runtimes that can be used here, ``"torch"`` first."""
    return ["torch", *(name for name in RUNTIMES if importlib.util.find_spec(name)
                       and (name == "openvino" or importlib.util.find_spec("onnxscript")))]


def converted(model, depth, runtime, precision="fp32"):
    """``model`` at ``depth`` run by ``runtime``; its file is exported on first use and kept in the user's cache."""
    from .budget import cache_folder
    from .depth import format_depth
    from .export import export

    if runtime not in RUNTIMES:
        raise RestoreError(f"runtime {runtime!r}: there are torch, {', '.join(RUNTIMES)} and auto")
    if runtime not in installed():
        raise RestoreError(f"runtime {runtime}: not installed; pip install 'anydepth[{'onnx' if runtime != 'openvino' else runtime}]'")
    depth = model.repeats(depth) or None
    digest = hashlib.sha256(json.dumps([model.name, model.config, format_depth(depth), torch.__version__], sort_keys=True).encode())
    for key, value in sorted(model.state_dict().items()):
        digest.update(key.encode() + value.detach().cpu().contiguous().numpy().tobytes())
    file = cache_folder() / "exported" / f"{digest.hexdigest()[:24]}{RUNTIMES[runtime]}"
    if not file.is_file():
        export(model, file, "onnx" if runtime == "onnxruntime" else runtime, depth)
    return FileNetwork(file, precision)


def fastest(restorer):
    """The runtime that restores a 256 x 256 image fastest here, of those that are installed; measured once and kept."""
    from .budget import measured_seconds
    times = {}
    for name in installed():
        try:
            times[name] = measured_seconds(restorer.on(name))
        except RestoreError:                 # it does not take this network or precision
            continue
    return min(times, key=times.get)


def _open_onnx(path, precision):
    import onnxruntime
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=onnxruntime.get_available_providers())
    name = session.get_inputs()[0].name
    return (lambda x: torch.from_numpy(session.run(None, {name: x.numpy()})[0]),
            _ours(session.get_modelmeta().custom_metadata_map))


def _open_openvino(path, precision):
    import openvino
    network = openvino.Core().read_model(path)
    facts = {key: str(getattr(value, "value", value)) for key, value in network.get_rt_info("anydepth").value.items()} \
        if network.has_rt_info("anydepth") else {}
    compiled = openvino.Core().compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32",
                                                              "INFERENCE_NUM_THREADS": torch.get_num_threads()})
    return lambda x: torch.from_numpy(compiled(x.numpy())[0].copy()), facts


def _open_torch(path, precision):
    extra = {"anydepth.json": ""}
    run = torch.export.load(path, extra_files=extra).module()
    return lambda x: run(x), _ours(json.loads(extra["anydepth.json"] or "{}"))


def _ours(metadata):
    return {key.removeprefix("anydepth."): value for key, value in metadata.items() if key.startswith("anydepth.")}


_OPENERS = {".onnx": _open_onnx, ".xml": _open_openvino, ".pt2": _open_torch}
