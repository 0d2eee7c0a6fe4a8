"""Checkpoints: safetensors with the network's configuration, and the way in for published weights.

Ours is a folder (``model.safetensors`` and ``config.json``, the Hub's layout) or one ``.safetensors`` file with the same
configuration in its metadata. Never a pickle; foreign pickles are read with ``weights_only=True`` alone.
"""

import json
from pathlib import Path

from .errors import CheckpointError
from .files import atomic_path, write_bytes

FORMAT = "anydepth-1"
WEIGHTS, CONFIG = "model.safetensors", "config.json"
BUNDLED = Path(__file__).parent / "weights"
DEFAULT_MODEL = "dynet_small"            # the bundled weights that commands take when none are named


def save(model, path, provenance=None, dtype=None):
    """Write ``model`` to ``path``: one file if it ends in ``.safetensors``, else a folder.

    ``provenance`` is a JSON-able dict (recipe, data, steps, metrics per depth); by default the model's own.
    ``dtype`` (a torch dtype such as ``torch.float16``) halves what the file takes; it is read back as float32.
    """
    from safetensors.torch import save_file

    path = Path(path)
    config = {"format": FORMAT, "model": model.name, "config": model.config,
              "provenance": model.provenance if provenance is None else provenance}
    tensors = {key: value.detach().cpu().contiguous() for key, value in model.state_dict().items()}
    if dtype is not None:
        tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
    single = path.suffix == ".safetensors"
    with atomic_path(path if single else path / WEIGHTS) as temporary:
        save_file(tensors, temporary, metadata={"anydepth": json.dumps(config)})
    if not single:
        write_bytes(path / CONFIG, json.dumps(config, indent=1) + "\n")


def load(path_or_name, device="cpu"):
    """The network of a checkpoint folder, a ``.safetensors`` file of ours, or a bundled name, in evaluation mode.

    ``model.provenance`` tells how it was trained. Raises :class:`CheckpointError` for what is not there, is damaged,
    or is a published checkpoint that ``restore import`` must convert first.
    """
    from .models import create_model

    path = find(path_or_name)
    tensors, config = _read_ours(path)
    try:
        model = create_model(config["model"], **config["config"])
        dtype = next(model.parameters()).dtype
        tensors = {key: value.to(dtype) if value.is_floating_point() else value for key, value in tensors.items()}
        model.load_state_dict(tensors)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CheckpointError(f"{path}: its weights do not fit its own configuration ({_first_line(error)}). "
                              "Fetch or write the file again.") from error
    model.provenance = config.get("provenance") or {}
    return model.to(device).eval()


def find(path_or_name):
    """The file of a checkpoint folder, file or bundled name; raises :class:`CheckpointError` if there is none."""
    path = Path(path_or_name)
    if path.is_dir():
        if (path / WEIGHTS).is_file():
            return path / WEIGHTS
        raise CheckpointError(f"{path}: no {WEIGHTS} in this folder; give a checkpoint folder, such as final/ of a run")
    if path.is_file():
        return path
    bundled = BUNDLED / f"{path_or_name}.safetensors"
    if bundled.is_file():
        return bundled
    raise CheckpointError(f"{path_or_name}: no such file or folder, and no bundled weights of this name; "
                          f"bundled are {', '.join(bundled_names()) or 'none'}")


def bundled_names():
    """Names that :func:`load` takes without a file."""
    return sorted(p.stem for p in BUNDLED.glob("*.safetensors"))


def import_published(path, arch=None):
    """A network with the weights of a published checkpoint file (``.pth``, ``.ckpt``, ``.safetensors`` ...).

    The state dict may be bare or under ``state_dict``, ``params``, ``params_ema`` or ``model``, its keys prefixed
    (``net.``, ``module.``). ``arch`` names the network when the keys alone do not tell. Raises
    :class:`CheckpointError` that says what was expected.
    """
    from .published import convert

    model = convert(_read_foreign(Path(path)), arch, path)
    model.provenance = {"imported": Path(path).name}
    return model.eval()


def _read_ours(path):
    """(tensors, configuration) of one of our files."""
    from safetensors import SafetensorError, safe_open

    from .adapter import KEY as ADAPTER
    if path.suffix != ".safetensors":
        raise CheckpointError(f"{path}: not one of our checkpoints (a folder or a .safetensors file); a published "
                              f"one comes in with: restore import {path.name} -o model.safetensors")
    try:
        with safe_open(path, framework="pt") as file:
            metadata = (file.metadata() or {}).get("anydepth")
            is_adapter = ADAPTER in (file.metadata() or {})
            tensors = {key: file.get_tensor(key) for key in file.keys()} if metadata else {}
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged, or no safetensors file ({_first_line(error)}). "
                              "Fetch or write it again.") from error
    if is_adapter:
        raise CheckpointError(f"{path}: this is the adapter of a network, not a network; give it with --adapter")
    if metadata is None:
        raise CheckpointError(f"{path}: safetensors without our configuration; bring it in with: "
                              f"restore import {path.name} -o model.safetensors")
    config = json.loads(metadata)
    if config.get("format") != FORMAT:
        raise CheckpointError(f"{path}: format {config.get('format')!r}, and this version reads {FORMAT!r}")
    return tensors, config


def _read_foreign(path):
    """The tensors by key of anybody's weights file."""
    import pickle

    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, EOFError, ValueError, KeyError, pickle.UnpicklingError) as error:
        raise CheckpointError(f"{path}: cannot be read as weights ({_first_line(error)}). Expected a safetensors file "
                              "or a PyTorch file that holds tensors and nothing that runs code.") from error
    while isinstance(content, dict):
        inner = next((content[key] for key in ("state_dict", "params_ema", "params", "model", "net")
                      if isinstance(content.get(key), dict)), None)
        if inner is None:
            break
        content = inner
    tensors = {key: value for key, value in content.items() if isinstance(value, torch.Tensor)} \
        if isinstance(content, dict) else {}
    if not tensors:
        raise CheckpointError(f"{path}: no tensors by name in it; expected a state dict, bare or under "
                              "state_dict or params")
    return tensors


def _first_line(error):
    return (str(error).strip().splitlines() or [type(error).__name__])[0][:200]
