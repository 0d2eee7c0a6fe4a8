"""Commands for people: ``inspect`` single images, ``diff`` two decisions, ``niqe-fit``, and the door to ``bench``."""

import argparse
import sys
from pathlib import Path

from restore.errors import ImageError
from restore.files import expand


def inspect(arguments):
    """Print the metrics of single images, and which rule fires on which value."""
    parser = argparse.ArgumentParser(prog="python -m data_tools inspect", description=inspect.__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or globs")
    parser.add_argument("--thresholds", metavar="FILE", help="YAML file; default: the one shipped")
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE.py:NAME", help="a scorer of your own")
    parser.add_argument("--brief", action="store_true", help="the verdict only")
    options = parser.parse_args(arguments)
    import pyarrow as pa

    from . import decide, plugins
    from .containers import locator, open_bytes
    from .measure import METRICS, measure, schema
    rules = decide.thresholds(options.thresholds)
    columns = plugins.columns(options.plugin)
    loaded = [plugins.load(spec) for spec in options.plugin]
    rejected = 0
    for path in _files(options.images):
        try:
            row = measure(open_bytes(locator("file", "", str(path))), path.name, plugins=loaded)
        except ImageError as error:
            row = {"error": str(error)}
        table = pa.Table.from_pylist([{**row, "id": "0"}], schema(columns))
        table = table.set_column(table.column_names.index("error"), "error", decide.error_kind(table["error"]))
        fired = {name: rule for name, rule in rules.items()
                 if rule["action"] != "off" and decide.fires(table, rule)[0]}
        reject = [name for name, rule in fired.items() if rule["action"] == "reject"]
        rejected += bool(reject)
        print(f"{path}: {'rejected: ' + ', '.join(reject) if reject else 'kept'}"
              + (f"  (flags: {', '.join(n for n in fired if n not in reject)})" if len(fired) > len(reject) else ""))
        if row["error"]:
            print(f"  {row['error']}")
        for name, rule in fired.items():
            for condition in decide.conditions(rule):
                if condition["metric"] != "error" and decide.fires(table, {"any": [condition]})[0]:
                    print(f"  {name}: {condition['metric']} = {_number(table[condition['metric']][0].as_py())}, "
                          f"and {decide.describe(condition)} is {'flagged' if rule['action'] == 'flag' else 'rejected'}"
                          + (" together with the rule's other conditions" if "all" in rule else ""))
        if not options.brief:
            for name in [*METRICS, *columns]:
                if row.get(name) is not None:
                    print(f"    {name:16} {_number(row[name]):>12}   {METRICS.get(name, ('', 'plug-in'))[1]}")
    if rejected:
        print(f"{rejected} rejected. Duplicates, contamination and watermarks are seen only in a build.",
              file=sys.stderr)
    return 0


def _files(patterns):
    found = []
    for pattern in patterns:
        # a file named outright is looked at whatever its name ends in
        found += [Path(pattern)] if Path(pattern).is_file() else [path for path, _ in expand([pattern])]
    return found


def _number(value):
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def diff(arguments):
    """Compare the decisions of two work folders: what went in, what went out, and by which rules."""
    parser = argparse.ArgumentParser(prog="python -m data_tools diff", description=diff.__doc__)
    parser.add_argument("a", help="work folder")
    parser.add_argument("b", help="work folder")
    parser.add_argument("--html", metavar="FILE", help="write a page with pictures too")
    options = parser.parse_args(arguments)
    from .diff import diff as compare
    said = compare(options.a, options.b, options.html)
    if isinstance(said, str):
        print(said)
    return 0


def niqe_fit(arguments):
    """Fit NIQE's model of good images on images of your own (at least some dozens of sharp photos)."""
    parser = argparse.ArgumentParser(prog="python -m data_tools niqe-fit", description=niqe_fit.__doc__)
    parser.add_argument("images", nargs="+", metavar="IMAGE", help="files, folders or globs")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="the model, a .npz file")
    options = parser.parse_args(arguments)
    import cv2
    from tqdm import tqdm

    from . import niqe
    from .decode import decode
    from .header import Refused
    skipped = []

    def grays():
        for path in tqdm(_files(options.images), desc="fit", unit="img", disable=None):
            try:
                pixels = decode(path.read_bytes())[1]
            except (OSError, Refused) as error:
                skipped.append(f"{path}: {error}")
                continue
            yield pixels if pixels.ndim == 2 else cv2.cvtColor(pixels, cv2.COLOR_BGR2GRAY)
    output = options.output if options.output.endswith(".npz") else options.output + ".npz"
    niqe.save(output, niqe.fit(grays()))
    for line in skipped:
        print(line, file=sys.stderr)
    print(f"{output}: give it to a build with --measure.niqe {output}")
    return 1 if skipped else 0


def bench(arguments):
    """Speed beside the decoding floor; accuracy on labelled images."""
    from .bench import command
    return command(arguments)
