"""Score models on benchmark sets, with the protocol beside every number.

  restore bench denoise --data DIR --model anydepth --depth all -o OUT
  restore bench cbsd68 --data DIR --model input --model nlm --model FILE.py:function
  restore bench derain --data DIR --write-inputs DIR2      (for programs that cannot be called from here)
  restore bench derain --data DIR --restored DIR3          (and their outputs: DIR3/ENTRY/NAME.png)
  restore bench check DIR                                  (which sets lie there, complete or not)

SUITE is 3task, 5task, denoise, derain, dehaze, real-noise, real, a single set such as rain100l, or your own YAML file.
The exit status is 1 if an image or a model failed, or if a file is not what its set publishes; the rest is scored.
OUT gets report.md, report.tex, report.json, report.html, results.csv and results.parquet.
"""

import sys
import time
from pathlib import Path

from ..errors import RestoreError


def add_arguments(parser):
    parser.add_argument("suite", metavar="SUITE", help="a suite, a set, or a YAML file; check: look at what lies in DIR")
    parser.add_argument("check_dir", metavar="DIR", nargs="?", help="with check: the folder to look into")
    parser.add_argument("--data", metavar="DIR", action="append", default=[],
                        help="folder that the sets lie below, or SET=DIR for one set; repeatable (default: ./data)")
    parser.add_argument("--model", metavar="[NAME=]M", action="append", default=[],
                        help="a bundled name, checkpoint, published .pth, .onnx, FILE.py:function, or a baseline: "
                             "input, median, nlm, bm3d, dcp; repeatable (default: input)")
    parser.add_argument("--depth", metavar="D", action="append", default=[],
                        help="small, large, repeats such as 2,3,3,4, or all; repeatable (default: the network's own)")
    parser.add_argument("--adapter", metavar="FILE", action="append", default=[],
                        help="score every network of ours with this adapter too; repeatable")
    parser.add_argument("--restored", metavar="[NAME=]DIR", action="append", default=[],
                        help="score a folder of restored images (PNG of 8 or 16 bits, or .npy)")
    parser.add_argument("--write-inputs", metavar="DIR", help="write the degraded images to DIR/ENTRY/NAME.png and stop")
    parser.add_argument("--protocol", metavar="P", help="lineage, seeded, gunet, luma, no-reference (default: the suite's)")
    parser.add_argument("--only", metavar="ENTRY", action="append", default=[],
                        help="only this entry or set, such as cbsd68-25 or rain100l; repeatable")
    parser.add_argument("--first", metavar="N", type=int, help="only the first N images of each set, by name (a partial set)")
    parser.add_argument("-o", "--output", metavar="OUT", help="folder of the report (default: bench-SUITE)")
    parser.add_argument("--device", default="auto", help="cpu, cuda, cuda:1 (default: a GPU where there is one)")
    parser.add_argument("--crops", metavar="N", type=int, default=10, help="best and worst crops for each model and set")
    parser.add_argument("--pyiqa", metavar="NAME[=WEIGHTS]", action="append", default=[],
                        help="another no-reference measure of the package pyiqa, with its weights file")
    parser.add_argument("--cache", metavar="DIR", help="where results are kept for the next run (default: the user's cache)")
    parser.add_argument("--no-cache", action="store_true", help="neither read nor keep results")


def run(args):
    from ..benchmark import catalog, locate
    if args.suite == "check":
        return _check(args)
    if args.check_dir:
        raise RestoreError(f"{args.check_dir}: not expected after a suite; a data folder goes after --data")
    for option in ("first", "crops"):
        value = getattr(args, option)
        if value is not None and value < (option == "first"):
            raise RestoreError(f"--{option} {value}: give a number of at least {int(option == 'first')}")
    suite = _select(catalog.load_suite(args.suite, args.protocol), args.only)
    suite = _with_pyiqa(suite, args.pyiqa)
    roots, given = locate.parse_data(args.data or ["data"] if args.data or Path("data").is_dir() else _no_data())
    _known(given, catalog.image_sets() | {e.set.key: e.set for e in suite.entries})
    by_set = {e.set.key: e.set for e in suite.entries}
    found = {key: locate.locate(image_set, roots, given) for key, image_set in by_set.items()}
    located = {e.key: found[e.set.key] for e in suite.entries}
    for key, image_set in by_set.items():
        if found[key] is None:
            print(f"{image_set.title}: not found; published at {image_set.published}", file=sys.stderr)
    if not any(located.values()):
        raise RestoreError(f"none of the sets of {suite.name} lies below {', '.join(map(str, [*roots, *given.values()]))}; "
                           f"restore bench check DIR says what does. Folders may be called "
                           f"{', '.join(f for s in by_set.values() for f in s.folders[:1])}.")
    if args.write_inputs:
        return _write_inputs(suite, located, args)
    return _bench(suite, located, args)


def _bench(suite, located, args):
    from tqdm import tqdm

    from ..benchmark import competitors, report, run, summary, tables
    from ..benchmark.cache import Cache, default_folder
    from ..memory import keep_freed_memory
    from ..restorer import choose_device

    keep_freed_memory()
    device = choose_device(args.device)
    if device.type == "cuda":                # float32 is float32 here, and the same run gives the same numbers
        import torch
        torch.backends.cudnn.allow_tf32 = torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.deterministic = True
    models = args.model or ([] if args.restored else ["input"])
    present = [key for key, place in located.items() if place]
    rows = competitors.competitors(models, args.depth, args.restored, device, alone=len(present) == 1, adapters=args.adapter)
    cache = Cache(None if args.no_cache else args.cache or default_folder())
    total = sum(min(args.first or len(place.items), len(place.items)) for place in located.values() if place)
    with tqdm(total=total, unit="image", disable=None, file=sys.stderr) as bar:
        def progress(text):
            bar.set_description(text, refresh=False)
            bar.update()
        results = run.run(suite, located, rows, cache, args.first, args.crops, progress)
    settings = {key: value for key, value in vars(args).items() if key != "check_dir"} | {"device": str(device)}
    start = time.process_time()
    made = summary.summarise(results, settings)
    out = Path(args.output or f"bench-{suite.name}")
    report.write_report(results, made, out)
    made["clock"]["report"] = time.process_time() - start
    print(tables.terminal(made))
    print(f"\nReport: {out / 'report.html'}")
    return 0 if results.ok else 1


def _write_inputs(suite, located, args):
    from ..benchmark.inputs import write_inputs
    bad = 0
    for entry in suite.entries:
        if located[entry.key]:
            folder = Path(args.write_inputs) / entry.key
            count, crc, errors = write_inputs(entry, located[entry.key], suite.protocol, folder, args.first)
            print(f"{entry.key}: {count} inputs in {folder}, crc32 {crc}, protocol {suite.protocol.name}, "
                  f"set {located[entry.key].label}")
            for error in errors:
                print(f"restore bench: {error}", file=sys.stderr)
            bad += len(errors)
    return 1 if bad else 0


def _check(args):
    from ..benchmark import catalog, locate
    from ..benchmark.tables import table
    if not args.check_dir:
        raise RestoreError("check needs the folder to look into: restore bench check DIR")
    roots, given = locate.parse_data([args.check_dir, *args.data])
    rows, lines = [], []
    for key, image_set in catalog.image_sets().items():
        place = locate.locate(image_set, roots, given)
        rows.append([key, place.label if place else "missing", len(place.items) if place else 0,
                     "-" if image_set.count is None else image_set.count,
                     place.folder if place else image_set.published])
        lines += [f"{key}: {line}" for line in locate.check(place)] if place else []
    print(table(["set", "state", "found", "expected", "folder, or where it is published"], rows))
    if lines:
        print("\n" + "\n".join(lines))
    return 0


def _select(suite, only):
    """The entries that ``--only`` names, by their key or their set's."""
    if not only:
        return suite
    import dataclasses
    import difflib
    keys = {name for entry in suite.entries for name in (entry.key, entry.set.key)}
    for name in only:
        if name not in keys:
            near = difflib.get_close_matches(name, keys, 1)
            raise RestoreError(f"--only {name}: not in {suite.name}" + (f"; did you mean {near[0]!r}?" if near else "")
                               + f" It has {', '.join(e.key for e in suite.entries)}.")
    kept = tuple(e for e in suite.entries if {e.key, e.set.key} & set(only))
    return dataclasses.replace(suite, entries=kept, complete=len(kept) == len(suite.entries))


def _with_pyiqa(suite, options):
    """The suite with further no-reference measures."""
    import dataclasses

    from ..benchmark.catalog import PHOTO_MEASURES, Metric
    if not options:
        return suite
    if suite.protocol.metrics[0].measure not in PHOTO_MEASURES:
        raise RestoreError(f"--pyiqa adds measures of photos, and {suite.name} has clean images under {suite.protocol.name}")
    more = []
    for option in options:
        name, _, weights = option.partition("=")
        if weights and not Path(weights).is_file():
            raise RestoreError(f"--pyiqa {option}: no such weights file")
        more.append(Metric(name, "pyiqa", model=name, weights=weights))
    protocol = dataclasses.replace(suite.protocol, metrics=(*suite.protocol.metrics, *more))
    return dataclasses.replace(suite, protocol=protocol)


def _known(given, sets):
    for key in given:
        if key not in sets:
            raise RestoreError(f"--data {key}=...: no set is called {key!r}; there are {', '.join(sets)}")


def _no_data():
    raise RestoreError("where are the sets? Give the folder that they lie below with --data DIR (or have a folder data here)")
