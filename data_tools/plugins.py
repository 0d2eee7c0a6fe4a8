"""Anyone's scorer as extra metrics: ``FILE.py:name`` in the recipe's ``measure.plugins``.

``name`` is a function ``(rgb, row) -> number or {column: number}``, or a class or factory function without arguments
that makes one (a model is then loaded once per worker). ``rgb`` is uint8 (h, w, 3), ``row`` the metrics measured so far. The
columns appear as ``FILE.column`` among the metrics, where thresholds, histograms and exports find them::

    # aesthetic.py                             # thresholds.yaml
    def score(rgb, row):                       ugly:
        return {"std": rgb.std()}                any: [{metric: aesthetic.std, below: 20}]

An exception in a plug-in is written into the image's ``error`` column and the run goes on.
"""

import hashlib
import importlib.util
import inspect
from pathlib import Path

import numpy as np

from restore.errors import RestoreError


def load(spec):
    """``(prefix, function)`` of a plug-in. Raises RestoreError naming what is missing."""
    path, colon, name = spec.rpartition(":")
    if not colon or not path.endswith(".py"):
        raise RestoreError(f"plug-in {spec!r}: expected FILE.py:name")
    if not Path(path).is_file():
        raise RestoreError(f"plug-in {spec!r}: {path}: no such file")
    module_spec = importlib.util.spec_from_file_location(f"data_tools_plugin_{Path(path).stem}", path)
    module = importlib.util.module_from_spec(module_spec)
    try:
        module_spec.loader.exec_module(module)
    except Exception as error:  # noqa: BLE001  somebody else's code
        raise RestoreError(f"plug-in {spec!r}: {type(error).__name__}: {error}") from None
    function = getattr(module, name, None)
    if not callable(function):
        raise RestoreError(f"plug-in {spec!r}: {path} has no function {name!r}")
    if inspect.isclass(function) or not inspect.signature(function).parameters:
        function = function()
    return Path(path).stem, function


def columns(specs):
    """Names of the columns that plug-ins add: each is tried on a small gray picture."""
    found = []
    for spec in specs:
        prefix, function = load(spec)
        try:
            values = function(np.full((64, 64, 3), 128, np.uint8), {})
        except Exception as error:  # noqa: BLE001  somebody else's code
            raise RestoreError(f"plug-in {spec!r} failed on a plain gray picture: "
                               f"{type(error).__name__}: {error}") from None
        found += [f"{prefix}.{name}" for name in (values if isinstance(values, dict) else {"score": values})]
    repeated = sorted({name for name in found if found.count(name) > 1})
    if repeated:
        raise RestoreError(f"plug-ins: {', '.join(repeated)} would come from two of them; rename a file")
    return found


def fingerprint(spec):
    """What the plug-in is: changed code measures again."""
    path = spec.rpartition(":")[0]
    try:
        return spec.rsplit("/", 1)[-1] + hashlib.sha256(Path(path).read_bytes()).hexdigest()[:12]
    except OSError as error:
        raise RestoreError(f"plug-in {spec!r}: {error.strerror}") from None
