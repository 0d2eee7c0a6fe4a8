"""Teachers: a network of ours, one that spandrel loads, an ONNX file, or a folder of somebody's outputs.

A teacher is frozen and holds ``stages`` (see :mod:`finetune.features`; empty where it has none to show). Called with a batch it
returns its outputs (n, 3, h, w), not clamped; :meth:`maps` then gives the energy maps of that call.
"""

import hashlib
from pathlib import Path

import numpy as np
import torch
from torch import nn

from restore import checkpoint, foreign
from restore.adapter import fingerprint
from restore.depth import count_macs, parse_depth
from restore.errors import RestoreError

from .features import Recorder, decoder_stages


def open_teacher(text):
    """The teacher that ``text`` names: ``CHECKPOINT[@DEPTH]``, a file of another family, an ``.onnx`` file or a folder.

    A network of ours teaches at ``DEPTH``, by default the one of its own depths that costs most. Raises RestoreError for what
    cannot be opened.
    """
    what, depth = split_depth(text)
    path = Path(what)
    if path.is_dir() and not (path / checkpoint.WEIGHTS).is_file():
        return FolderTeacher(path)
    try:
        if path.suffix == ".onnx":
            if not path.is_file():
                raise RestoreError("no such file")
            return OnnxTeacher(foreign.OnnxNetwork(path))
        network = foreign.load_network(what)
        if not hasattr(network, "repeats"):
            return NetworkTeacher(network.model.eval(), network)
        depth = network.repeats(parse_depth(depth)) if depth else largest(network)
    except RestoreError as error:
        raise RestoreError(f"teacher: {text}: {error}" if str(what) not in str(error) else f"teacher: {error}") from None
    return NetworkTeacher(network, lambda x: network(x, depth or None))


def split_depth(text):
    """``CHECKPOINT@DEPTH`` as ``(checkpoint, depth)``; the depth is None where none is given, or where such a file exists."""
    what, at, depth = str(text).rpartition("@")
    return (what, depth) if at and what and not Path(text).exists() else (str(text), None)


def largest(network):
    """The repeats of the named depth that costs most; ``()`` for a network of one fixed depth."""
    return max((network.repeats(name) for name in network.depths), key=lambda depth: count_macs(network, 64, 64, depth),
               default=network.repeats())


class NetworkTeacher(nn.Module):
    """A torch network; ``call`` runs it on a batch."""

    def __init__(self, network, call):
        super().__init__()
        self.network = network.eval().requires_grad_(False)
        self.call = call
        self.stages = decoder_stages(network, call)
        self.recorder = None
        self.sha256 = fingerprint(network)

    def watch(self, stages):
        """Record these of its stages from now on."""
        self.recorder = Recorder(self.network, {scale: self.stages[scale] for scale in stages}, training=False)

    def train(self, mode=True):
        """Stays in evaluation mode."""
        return super().train(False)

    def forward(self, batch):
        with torch.no_grad():
            return self.call(batch["input"]).float()

    def maps(self):
        return self.recorder.take() if self.recorder else {}


class OnnxTeacher(nn.Module):
    """An ONNX file, image by image on the CPU; it shows no features."""

    stages = {}

    def __init__(self, network):
        super().__init__()
        self.network = network
        self.sha256 = hashlib.sha256(network.path.read_bytes()).hexdigest()

    def forward(self, batch):
        x = batch["input"]
        try:
            made = [self.network(image[None].cpu().numpy()) for image in x]
        except Exception as error:            # onnxruntime's own exceptions: a fixed size, most often
            raise RestoreError(f"teacher: {self.network.path} does not take crops of {x.shape[3]} x {x.shape[2]} pixels "
                               f"({foreign.in_short(error)}); set data.crop to its size, or export it with free sizes"
                               ) from error
        output = torch.from_numpy(np.concatenate(made)).to(x.device)
        if output.shape != x.shape:
            raise RestoreError(f"teacher: {self.network.path} makes {tuple(output.shape)} of {tuple(x.shape)}, not an image of "
                               "that size")
        return output

    def maps(self):
        return {}


class FolderTeacher(nn.Module):
    """Outputs under the names of the pairs: ``DIR/NAME.png`` (8 or 16 bits) or ``.npy``, or the same in ``DIR/TASK``.

    They are cropped and turned together with their pair, as 8 bits, which the clean images have too.
    """

    stages = {}
    sha256 = ""                               # names and sizes are part of the data's digest

    def __init__(self, path):
        super().__init__()
        self.path = Path(path)

    def join(self, sources):
        """Give the pairs of the mixture their outputs; raises RestoreError for a task that is made, or a pair without any."""
        for source in sources:
            if not source.paired:
                raise RestoreError(f"tasks.{source.label}.clean: the teacher {self.path} is a folder of outputs, and has none "
                                   "of degradations that are made during training; leave clean out, or give a network")
            if source.task.strength:
                raise RestoreError(f"tasks.{source.label}.strength: the outputs in {self.path} are those of the pairs as they are; "
                                   "leave strength out, or give a network")
            found, missing = {}, []
            for pair in source.corpus.pairs:
                try:
                    found[pair.name] = foreign.find_output([self.path / source.label, self.path], pair.name)
                except RestoreError:
                    missing.append(pair.name)
            if missing:
                raise RestoreError(f"teacher: {self.path} lacks outputs of {len(missing)} of {source.corpus.count} pairs of "
                                   f"{source.label}, such as {missing[0]}.png")
            source.corpus.outputs = found
        return self

    def forward(self, batch):
        return batch["teacher"]

    def maps(self):
        return {}
