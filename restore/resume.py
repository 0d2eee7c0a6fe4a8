"""The folder of a run: its recipe, its log, and checkpoints that are whole or not there.

A checkpoint is a folder ``step-00001000`` of safetensors files and ``state.json``. It is written under another name and
flushed to the disk; ``manifest.json``, with the size and SHA-256 of every file, comes last, then the folder gets its
name. After ``kill -9`` or a full disk the newest whole checkpoint is therefore the one before, and it is found by
itself.
"""

import hashlib
import json
import os
import platform
import re
import shutil
import sys
from pathlib import Path

from .errors import RestoreError
from .files import require_space, write_bytes

MANIFEST, STATE = "manifest.json", "state.json"
NAME = re.compile(r"step-(\d{8,})$")


class RunFolder:
    """``out`` as a place for a run; ``write`` is false in the processes that only look on."""

    def __init__(self, out, write=True):
        self.path, self.write = Path(out), write
        self.checkpoints = self.path / "checkpoints"
        self.log_path = self.path / "log.jsonl"

    def holds_run(self):
        """Whether a run was started here."""
        return (self.path / "recipe.yaml").exists()

    def describe(self, recipe, facts):
        """Write the resolved recipe (a dict) and the versions, seed and device of the run."""
        import yaml
        if self.write:
            write_bytes(self.path / "recipe.yaml", yaml.safe_dump(recipe, sort_keys=False))
            write_bytes(self.path / "run.json", json.dumps({**versions(), **facts}, indent=1) + "\n")

    def recipe(self):
        """The resolved recipe that the run was started with, as a dict."""
        import yaml
        try:
            return yaml.safe_load((self.path / "recipe.yaml").read_text())
        except (OSError, yaml.YAMLError) as error:
            raise RestoreError(f"{self.path / 'recipe.yaml'}: {error}; the run cannot be resumed without it") from None

    def log(self, **row):
        """Append one row to ``log.jsonl``."""
        if self.write:
            with open(self.log_path, "a") as file:
                file.write(json.dumps(row) + "\n")

    def cut_log(self, step):
        """Drop the rows after ``step``, which the resumed run will write again, and a torn last one."""
        if self.write and self.log_path.exists():
            kept = []
            for line in self.log_path.read_text(errors="replace").splitlines():
                try:
                    if json.loads(line)["step"] <= step:
                        kept.append(line + "\n")
                except (ValueError, KeyError, TypeError):
                    continue
            write_bytes(self.log_path, "".join(kept))

    def steps(self):
        """Steps of the checkpoints that bear their final name, the oldest first."""
        if not self.checkpoints.is_dir():
            return []
        return sorted(int(found[1]) for p in self.checkpoints.iterdir() if (found := NAME.match(p.name)))

    def save(self, step, groups, state, keep):
        """Write the checkpoint of ``step``: ``groups`` is {file stem: {name: tensor}}, ``state`` JSON-able; keep the
        last ``keep``.

        Raises RestoreError when it cannot be written, with the earlier checkpoints as they were.
        """
        if not self.write:
            return
        final = self.checkpoints / f"step-{step:08d}"
        partial = self.checkpoints / f".{final.name}.partial"
        needed = sum(t.nbytes for group in groups.values() for t in group.values())
        try:
            self.clear_partial()
            require_space(self.checkpoints, needed + needed // 20 + (1 << 20), f"the checkpoint of step {step}")
            partial.mkdir(parents=True)
            _write(partial, groups, state)
            _sync(partial)
            if final.exists():                      # only a damaged one, which the resumed run has written anew
                shutil.rmtree(final)
            os.replace(partial, final)
            _sync(self.checkpoints)
        except Exception as error:
            if not _is_writing(error):
                raise
            shutil.rmtree(partial, ignore_errors=True)
            kept = self.what_is_kept(step)
            raise RestoreError(f"{final}: the checkpoint could not be written ({error}); {kept}") from None
        for old in self.steps()[:-keep]:
            shutil.rmtree(self.checkpoints / f"step-{old:08d}")

    def what_is_kept(self, failed=None):
        """In words, for an error: the last checkpoint but that of the step which ``failed``."""
        steps = [step for step in self.steps() if step != failed]
        return f"the checkpoint of step {steps[-1]} is whole; continue from it with --resume" if steps else \
            "there is no checkpoint yet"

    def clear_partial(self):
        """Remove what a killed run left half written."""
        if self.write and self.checkpoints.is_dir():
            for path in self.checkpoints.glob(".step-*.partial"):
                shutil.rmtree(path)

    def load(self):
        """``(step, groups, state)`` of the newest whole checkpoint, or None; damaged ones are told on stderr."""
        for step in reversed(self.steps()):
            folder = self.checkpoints / f"step-{step:08d}"
            fault = damage(folder)
            if fault is None:
                return step, *_read(folder)
            print(f"{folder}: passed over, {fault}", file=sys.stderr)
        return None


def collect(learner, optimizer):
    """``(groups, scalars)``: the tensors of a training state for :meth:`RunFolder.save`, the optimizer's plain numbers.

    Whole and on the CPU, also of sharded weights; every process must call it.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_optimizer_state_dict
    tensors, scalars = {}, {}
    state = get_optimizer_state_dict(
        learner, optimizer, options=StateDictOptions(full_state_dict=True, cpu_offload=True)
    )
    for name, values in state.get("state", {}).items():
        for key, value in values.items():
            (tensors if hasattr(value, "untyped_storage") else scalars)[f"{name}::{key}"] = value
    return {"model": whole_state(learner), "optimizer": tensors}, scalars


def apply(learner, optimizer, groups, scalars):
    """Put what :func:`collect` gave into a fresh ``learner`` and ``optimizer``."""
    from torch.distributed.checkpoint import state_dict as distributed
    options = distributed.StateDictOptions(full_state_dict=True)
    fresh = distributed.get_optimizer_state_dict(learner, optimizer, options=options)
    values = {}
    for key, value in [*groups["optimizer"].items(), *scalars.items()]:
        name, _, entry = key.rpartition("::")
        values.setdefault(name, {})[entry] = value
    distributed.set_optimizer_state_dict(
        learner, optimizer, {"state": values, "param_groups": fresh["param_groups"]}, options=options
    )
    # last: the line above takes an empty step
    distributed.set_model_state_dict(learner, groups["model"], options=options)


def whole_state(module):
    """The module's state dict on the CPU, shards put together, no storage shared; every process must call it."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
    state = get_model_state_dict(module, options=StateDictOptions(full_state_dict=True, cpu_offload=True))
    return {name: tensor.clone() for name, tensor in state.items()}


def damage(folder):
    """What is wrong with a checkpoint folder by its manifest, in words, or None if it is whole."""
    try:
        files = json.loads((folder / MANIFEST).read_text())
        for name, (size, digest) in files.items():
            path = folder / name
            if path.stat().st_size != size:
                return f"{name} has {path.stat().st_size} bytes instead of {size}"
            if _digest(path) != digest:
                return f"{name} has changed since it was written"
    except (OSError, ValueError, TypeError, AttributeError) as error:
        return f"its manifest or a file is missing or damaged ({error})"
    return None


def versions():
    """Versions of what decides a run's numbers, and the machine's kind."""
    import importlib.metadata
    found = {"python": platform.python_version(), "platform": platform.platform()}
    for name in ("anydepth", "torch", "accelerate", "numpy", "opencv-python-headless", "simplejpeg"):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            found[name] = None
    return found


def _write(folder, groups, state):
    from safetensors.torch import save_file
    for stem, tensors in groups.items():
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / f"{stem}.safetensors")
    (folder / STATE).write_text(json.dumps(state, indent=1))
    files = {}
    for path in sorted(folder.iterdir()):
        files[path.name] = [path.stat().st_size, _digest(path)]
        _sync(path)
    (folder / MANIFEST).write_text(json.dumps(files, indent=1))
    _sync(folder / MANIFEST)


def _read(folder):
    from safetensors.torch import load_file
    groups = {path.stem: load_file(path) for path in sorted(folder.glob("*.safetensors"))}
    return groups, json.loads((folder / STATE).read_text())


def _digest(path):
    total = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(1 << 20):
            total.update(chunk)
    return total.hexdigest()


def _sync(path):
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _is_writing(error):
    """Whether an exception is the disk's: the operating system's, safetensors' own, or require_space's."""
    from safetensors import SafetensorError
    return isinstance(error, (OSError, SafetensorError, RestoreError))
