"""Adapters: small changes of a network's weights, kept in a file of their own beside the checkpoint that they were made for.

A change of a layer is a matrix of low rank: its weight, taken as a matrix (outputs, inputs x kernel), becomes
``W + up @ down`` (LoRA, arXiv 2106.09685); where that would take no fewer numbers than the whole change, the whole change is
kept. Since the change goes into the weight, an adapter works at every depth of a network that repeats its blocks, costs
nothing at run time, and is there in whatever is made of the network: the fast CPU path, an exported file.

    adapter = restore.adapter.load("haze.safetensors")
    adapted = adapter.merged(model)          # a second network; all but the adapted weights are those of `model` itself

So the adapter is switched on and off by using one network or the other.
"""

import copy
import dataclasses
import hashlib
import json
from pathlib import Path

import torch

from .errors import CheckpointError
from .files import atomic_path

FORMAT = "anydepth-adapter-1"
KEY = "anydepth-adapter"                     # in the file's metadata


@dataclasses.dataclass
class Adapter:
    """Changes of named parameters of one network.

    changes: by the parameter's name (``"encoder1.attn.qkv.weight"``) either ``{"up": (outputs, rank), "down": (rank,
        rest)}`` or ``{"delta": as the parameter}``, float32.
    facts: JSON-able. ``base`` is :func:`fingerprint` of the weights that it was made for, ``network`` their network's
        name; beside them stands what the maker has to say: what it was adapted to, the figures that were measured.
    source: the file's name, for messages.
    """
    changes: dict
    facts: dict
    source: str = "the adapter"

    def weights(self, model, strength=1.0):
        """``{name: changed parameter}`` for ``torch.func.functional_call``; gradients reach ``up``, ``down`` and ``delta``."""
        own = dict(model.named_parameters())
        return {name: own[name].detach() + strength * _whole(parts, own[name].shape).to(own[name])
                for name, parts in self.changes.items()}

    def merged(self, model, strength=1.0, any_base=False):
        """A network with the changes in its weights, in evaluation mode; it shares every other weight with ``model``, which
        stays as it is.

        ``strength`` scales the changes, 0 is the network itself. Raises :class:`CheckpointError` if the adapter was made for
        another network or for other weights of it; ``any_base`` allows the latter.
        """
        self.require_base(model, any_base)
        shared = {id(tensor): tensor for tensor in [*model.parameters(), *model.buffers()]}
        changed = copy.deepcopy(model, shared).eval()
        own = dict(model.named_parameters())
        with torch.no_grad():
            weights = {id(own[name]): torch.nn.Parameter(weight, requires_grad=False)
                       for name, weight in self.weights(model, strength).items()}
        for module in changed.modules():     # a weight may stand in several places
            for name, parameter in list(module._parameters.items()):
                if id(parameter) in weights:
                    setattr(module, name, weights[id(parameter)])
        changed.provenance = {**getattr(model, "provenance", {}), "adapter": self.facts}
        return changed

    def require_base(self, model, any_base=False):
        """Raise :class:`CheckpointError` unless ``model`` is what the adapter was made for."""
        named, own = self.facts.get("network"), getattr(model, "name", type(model).__name__)
        base, title = str(self.facts.get("base")), self.facts.get("base_name", "unnamed")
        parameters = dict(model.named_parameters())
        for name, parts in self.changes.items():
            if name not in parameters or not _fits(parts, parameters[name].shape):
                fault = "no layer" if name not in parameters else "another shape of"
                raise CheckpointError(f"{self.source}: made for {title} ({named}); this is {own}, which has {fault} {name}. "
                                      "Use it with its own checkpoint.")
        if not any_base and fingerprint(model) != base:
            raise CheckpointError(f"{self.source}: made for other weights of {named} than these ({title}, {base[:12]}; these "
                                  f"are {fingerprint(model)[:12]}). Use it with the checkpoint that it was made for, or adapt "
                                  "this one.")

    def count(self):
        """How many numbers the changes take."""
        return sum(tensor.numel() for parts in self.changes.values() for tensor in parts.values())

    def save(self, path):
        """Write one ``.safetensors`` file with the facts in its metadata; the same adapter gives the same bytes."""
        from safetensors.torch import save_file
        path = Path(path)
        if path.suffix != ".safetensors":
            raise CheckpointError(f"{path}: an adapter's file ends in .safetensors")
        tensors = {f"{name}.{part}": tensor.detach().float().cpu().contiguous()
                   for name, parts in self.changes.items() for part, tensor in parts.items()}
        with atomic_path(path) as temporary:
            save_file(tensors, temporary, metadata={KEY: json.dumps({"format": FORMAT, **self.facts})})


def load(path):
    """The :class:`Adapter` in a file; raises :class:`CheckpointError` for what is missing, damaged or no adapter."""
    from safetensors import SafetensorError, safe_open
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file; an adapter is written by: python -m finetune adapt")
    try:
        with safe_open(path, framework="pt") as file:
            facts = _facts(path, file.metadata())
            tensors = {key: file.get_tensor(key) for key in file.keys()}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged, or no safetensors file ({str(error).splitlines()[0][:200]})") from error
    changes = {}
    for key, tensor in tensors.items():
        name, _, part = key.rpartition(".")
        changes.setdefault(name, {})[part] = tensor.float()
    if not all(set(parts) in ({"up", "down"}, {"delta"}) for parts in changes.values()):
        raise CheckpointError(f"{path}: damaged: a layer's change is not complete. Write it again.")
    return Adapter(changes, facts, str(path))


def read_facts(path):
    """The facts of an adapter's file, from its header alone; raises :class:`CheckpointError` as :func:`load` does."""
    from safetensors import SafetensorError, safe_open
    try:
        with safe_open(path, framework="pt") as file:
            return _facts(path, file.metadata())
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged, or no safetensors file ({str(error).splitlines()[0][:200]})") from error


def beside(checkpoint, model):
    """``[(path, facts)]`` by path of the adapters for ``model`` in the folder of its checkpoint file or one below it."""
    base, found = fingerprint(model), []
    folder = Path(checkpoint).parent
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("*/*.safetensors")]):
        try:
            facts = read_facts(path)
        except CheckpointError:              # a checkpoint, or somebody else's file
            continue
        if facts.get("base") == base:
            found.append((path, facts))
    return found


def fingerprint(model):
    """SHA-256 of a network's state: names, shapes, and values in half precision, so that a checkpoint stored in 16 bits is the
    same base as the one that it was made from."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        tensor = tensor.detach().cpu()
        values = tensor.half() if tensor.is_floating_point() else tensor
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode() + values.contiguous().numpy().tobytes())
    return digest.hexdigest()


def factors(shape, rank):
    """``(outputs, rank, rest)`` for a change of that rank of a weight of ``shape``; None where the whole change is smaller."""
    outputs, rest = shape[0], int(torch.Size(shape[1:]).numel())
    return (outputs, rank, rest) if rank * (outputs + rest) < outputs * rest else None


def _whole(parts, shape):
    return parts["delta"] if "delta" in parts else (parts["up"] @ parts["down"]).view(shape)


def _fits(parts, shape):
    if "delta" in parts:
        return parts["delta"].shape == shape
    up, down = parts["up"], parts["down"]
    return (up.ndim == down.ndim == 2 and up.shape[1] == down.shape[0] and len(shape) >= 2
            and (len(up), down.shape[1]) == (shape[0], torch.Size(shape[1:]).numel()))


def _facts(path, metadata):
    text = (metadata or {}).get(KEY)
    if text is None:
        raise CheckpointError(f"{path}: not an adapter; one is written by: python -m finetune adapt")
    facts = json.loads(text)
    if facts.pop("format", None) != FORMAT:
        raise CheckpointError(f"{path}: an adapter of another format than {FORMAT!r}, which this version reads")
    return facts
