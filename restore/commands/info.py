"""What a network is: its parameters, its depths and what each costs for one image.

MODEL is a bundled name, a checkpoint folder, a .safetensors file, or the name of a network (fresh weights). Adapters made for
it that lie in its folder, or in one below that, are listed.
"""

import json

from ..errors import CheckpointError, RestoreError


def add_arguments(parser):
    parser.add_argument("models", nargs="*", metavar="MODEL", help="default: all that are bundled")
    parser.add_argument("--size", default="256x256", metavar="HxW", help="image size that MACs are counted at")
    parser.add_argument("--depth", action="append", metavar="D", help="a depth beside the named ones, such as 3,4,4,6")
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(args):
    height, width = parse_size(args.size)
    from ..checkpoint import bundled_names
    reports, failed = [], False
    for name in args.models or bundled_names():
        try:
            reports.append(describe(name, height, width, args.depth or []))
        except RestoreError as error:
            import sys
            print(f"restore info: error: {error}", file=sys.stderr)
            failed = True
    print(json.dumps(reports, indent=1) if args.json else "\n\n".join(map(_text, reports)))
    return int(failed)


def describe(name, height, width, depths=()):
    """A dict of a network's facts; ``depths`` are counted beside its named ones."""
    from ..depth import count_macs, count_parameters, format_depth

    model = open_model(name)
    chosen = dict.fromkeys([*model.depths, *map(str, depths)]) or {"fixed": None}
    costs = {label: {"repeats": format_depth(model.repeats(None if label == "fixed" else label)) or None,
                     "macs": count_macs(model, height, width, None if label == "fixed" else label)}
             for label in chosen}
    return {"model": name, "network": model.name, "parameters": count_parameters(model), "size": [height, width],
            "multiple": model.multiple, "default_depth": model.default_depth, "depths": costs,
            "config": model.config, "provenance": model.provenance, "adapters": _adapters(name, model)}


def _adapters(name, model):
    """The adapters for ``model`` beside its checkpoint: their facts, with ``file``; none for a network with fresh weights."""
    from ..adapter import beside
    from ..checkpoint import find
    try:
        checkpoint = find(name)
    except CheckpointError:
        return []
    return [{"file": str(path), **facts} for path, facts in beside(checkpoint, model)]


def parse_size(text):
    """``"256x320"`` as (height, width); raises :class:`RestoreError`."""
    height, _, width = text.lower().partition("x")
    if not (height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise RestoreError(f"--size {text}: give height and width such as 256x256")
    return int(height), int(width)


def open_model(name):
    """The network of a checkpoint or bundled name, or a new one if ``name`` is a network's; raises :class:`RestoreError`."""
    from ..checkpoint import load
    from ..models import MODELS, create_model
    try:
        return load(name)
    except CheckpointError:
        if name in MODELS:
            return create_model(name)
        raise


def _text(report):
    height, width = report["size"]
    lines = [f"{report['model']}: {report['network']}, {report['parameters'] / 1e6:.3f} M parameters"]
    lines.append(f"  {'depth':<12} {'repeats':<10} GMACs at {height}x{width}")
    for name, cost in report["depths"].items():
        mark = " (default)" if name == report["default_depth"] else ""
        lines.append(f"  {name:<12} {cost['repeats'] or '':<10} {cost['macs'] / 1e9:.2f}{mark}")
    trained = report["provenance"]
    for key, value in trained.items():
        if isinstance(value, (str, int, float)):
            lines.append(f"  {key}: {value}")
        elif isinstance(value, list) and all(isinstance(item, str) for item in value):
            lines.append(f"  {key}: {'; '.join(value)}")
    for facts in report["adapters"]:
        lines.append(f"  adapter {facts['file']}: " + ", ".join(
            f"{key} {value}" for key, value in facts.items() if key in ("task", "rank", "parameters") and value is not None))
        lines += [f"    {key}: {value}" for key, value in facts.get("measured", {}).items()]
    return "\n".join(lines)
