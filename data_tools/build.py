"""The stages in their order, together (``build``) or alone, and what the command line says of each."""

import argparse
import sys
import time
from pathlib import Path

from restore import recipe as recipes
from restore.errors import RestoreError
from restore.files import discard_half_written, write_bytes

from . import recipe as recipe_module
from .store import Store


def command(name, arguments):
    """``build`` or one stage from command-line arguments."""
    parser = argparse.ArgumentParser(prog=f"python -m data_tools {name}", description=STAGE_HELP[name],
                                     epilog="Any key of the recipe: --measure.timeout 30, --rules.blurry.sharpness 0.8")
    parser.add_argument("recipe", metavar="RECIPE", help="YAML file; or a folder, archive or URL list by itself")
    parser.add_argument("-o", "--output", help="work folder (default: the recipe's `output`, else NAME-build)")
    if name == "measure":
        parser.add_argument("--shard", default="0/1", help="i/n: every n-th part only, for job arrays (scan first)")
    options, rest = parser.parse_known_args(arguments)
    shard = _shard(options.shard) if name == "measure" else (0, 1)
    recipe = recipe_module.load(options.recipe, options.output, overrides(rest, parser))
    store = Store(recipe.output)
    store.folder.mkdir(parents=True, exist_ok=True)
    if name == "build":
        return build(store, recipe)
    if name == "measure" and store.manifest("scan") is None:
        run_stage("scan", store, recipe)
    return run_stage(name, store, recipe, shard)


def overrides(rest, parser=None):
    """Pairs (dotted key, value) from ``--key value`` and ``--key=value``; values are read as YAML."""
    import yaml
    pairs, rest = [], list(rest)
    while rest:
        key = rest.pop(0)
        if not key.startswith("--") or len(key) < 3:
            raise RestoreError(f"{key!r}: unexpected; keys of the recipe are given as --key value")
        key, equals, value = key[2:].partition("=")
        if not equals:
            if not rest:
                raise RestoreError(f"--{key}: a value is missing")
            value = rest.pop(0)
        pairs.append((key.replace("-", "_"), yaml.safe_load(value)))
    return pairs


def build(store, recipe):
    """All stages; returns None. A stage that has nothing new to do is quick."""
    write_bytes(store.folder / "recipe.json", _resolved(recipe))
    for stage in _RUN:
        run_stage(stage, store, recipe)
    for name in ("recipe.json", "report.html", "decide/thresholds.yaml", "export/README.md",
                 *(f"{stage}/manifest.json" for stage in _RUN)):
        discard_half_written(store.folder / name)


def run_stage(name, store, recipe, shard=(0, 1)):
    """One stage, with a line on stderr that says what it did."""
    started = time.monotonic()
    try:
        said = _RUN[name](store, recipe, shard) if name == "measure" else _RUN[name](store, recipe)
    except OSError as error:               # a full disk, a folder that may not be written: what is committed stays
        raise RestoreError(f"{name}: {error.filename or store.folder}: {error.strerror or error}. Mend it and run "
                           "the same command again; what is done is kept.") from None
    print(f"{name:8} {time.monotonic() - started:7.1f} s  {said or ''}".rstrip(), file=sys.stderr)


def _scan(store, recipe):
    from .scan import scan
    return f"{scan(store, recipe)} images in {len(recipe.sources)} source(s)"


def _measure(store, recipe, shard):
    from .measuring import run
    rows, measured = run(store, recipe, shard)
    if store.manifest("measure") is None:
        return f"{measured} images measured, shard {shard[0]}/{shard[1]}; other shards are still missing"
    if shard == (0, 1):
        _passes(store, recipe)
    return f"{rows} images, {measured} of them measured now"


def _passes(store, recipe):
    from .passes import run
    return run(store, recipe)


def _join(store, recipe):
    from .join import join
    return join(store, recipe)


def _decide(store, recipe):
    from .decide import decide
    rows, kept = decide(store, recipe)
    return f"{kept} of {rows} kept"


def _report(store, recipe):
    from .report import write_report
    return write_report(store, recipe)


def _export(store, recipe):
    from .export import export
    return export(store, recipe)


_RUN = {"scan": _scan, "measure": _measure, "passes": _passes, "join": _join, "decide": _decide, "report": _report,
        "export": _export}
STAGE_HELP = {
    "build": "All stages, going on where an earlier run stopped. Images that were measured before are not read again.",
    "scan": "List the images of every source (URL lists are downloaded).",
    "measure": "Measure every image once; finishes what is missing.",
    "join": "Find duplicates in the whole set and copies of benchmark test images.",
    "decide": "Apply the thresholds to the measured metrics; reads no image.",
    "report": "Write report.html.",
    "export": "Write the chosen images.",
}


def _shard(text):
    try:
        number, count = map(int, text.split("/"))
        if 0 <= number < count:
            return number, count
    except ValueError:
        pass
    raise RestoreError(f"--shard {text}: expected i/n with 0 <= i < n")


def _resolved(recipe):
    import json
    values = recipes.to_dict(recipe)
    values.pop("output")
    base = str(Path.cwd())
    return json.dumps(values, indent=1, sort_keys=True).replace(base + "/", "") + "\n"
