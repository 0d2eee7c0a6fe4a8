"""The run in numbers: one JSON-able dict from which every table, curve and page is made."""

import itertools
import platform
from statistics import median

from . import catalog, statistics
from .cache import code_version


def summarise(results, settings):
    """All numbers of a run as a dict; ``settings`` is the resolved command, kept as it is."""
    suite, metrics = results.suite, results.suite.protocol.metrics
    by_model = {c.name: {e.entry.key: [] for e in results.entries} for c in results.competitors}
    for row in results.rows:
        by_model[row["model"]][row["entry"]].append(row)
    entries = [_entry(result, [row for row in results.rows if row["entry"] == result.entry.key]) for result in results.entries]
    models = [_model(c, by_model[c.name], results) for c in results.competitors]
    return {
        "suite": suite.name, "title": suite.title, "protocol": suite.protocol.as_dict(),
        "protocol_text": suite.protocol.describe(), "metrics": {m.name: m.better for m in metrics},
        "complete": suite.complete and all(e["complete"] for e in entries),
        "entries": entries, "models": models, "pixels": _pixels(results.rows),
        "published": _published(results, {e["key"]: e for e in entries}, models),
        "pairs": _pairs(results, by_model), "failed": results.failed, "clock": results.clock,
        "versions": versions(), "settings": settings,
    }


def versions():
    """What computed the numbers: packages, the JPEG decoder, the code of the benchmark itself."""
    import cv2
    import numpy
    import scipy
    import simplejpeg
    import torch

    from .. import __version__
    return {"anydepth": __version__, "code": code_version(), "python": platform.python_version(),
            "platform": f"{platform.system()} {platform.machine()}", "numpy": numpy.__version__, "scipy": scipy.__version__,
            "torch": torch.__version__, "opencv": cv2.__version__, "threads": torch.get_num_threads(),
            "jpeg decoder": f"libjpeg-turbo of simplejpeg {simplejpeg.__version__}, accurate DCT, smooth chroma upsampling"}


def _entry(result, rows):
    found = len(result.located.items) if result.located else 0
    return {"key": result.entry.key, "title": result.entry.title, "set": result.entry.set.key, "sigma": result.entry.sigma,
            "label": result.label, "complete": result.complete, "found": found, "expected": result.entry.set.count,
            "scored": result.images, "pixels": _pixels(rows), "inputs_crc32": result.crc, "errors": result.errors, "notes": result.notes,
            "problems": result.located.problems if result.located else [], "published": result.entry.set.published}


def _pixels(rows):
    """Mean number of pixels of the images scored."""
    return sum(row["height"] * row["width"] for row in rows) / len(rows) if rows else None


def _model(competitor, rows_of, results):
    metrics = [m.name for m in results.suite.protocol.metrics]
    whole = {e.entry.key: e for e in results.entries}
    entries, macs_of = {}, {}
    for key, rows in rows_of.items():
        if not rows:
            continue
        sizes = {(row["height"], row["width"]) for row in rows}
        for size in sizes - macs_of.keys():
            macs_of[size] = competitor.macs(*size)
        macs = [macs_of[row["height"], row["width"]] for row in rows]
        label = _label(whole[key], len(rows))
        for row, count in zip(rows, macs):
            row |= {"gmacs": None if count is None else count / 1e9, "state": label,
                    "protocol": results.suite.protocol.name}
        times = [row["milliseconds"] for row in rows if row["milliseconds"] is not None]
        entries[key] = {
            "n": len(rows), "label": label,
            **{m: statistics.summarise([row[m] for row in rows], whole[key].entry.set.key) for m in metrics},
            "gmacs": None if None in macs else sum(macs) / len(macs) / 1e9,
            "milliseconds": median(times) if times else None}
    full = len(entries) == len(rows_of)
    return {"name": competitor.name, "kind": competitor.kind, "source": competitor.source, "key": competitor.key,
            "depth": competitor.depth, "note": competitor.note, "parameters": competitor.parameters,
            "memory_mib": results.memory.get(competitor.name), "entries": entries,
            "mean": {m: statistics.mean_of_entries([([row[m] for row in rows], whole[key].entry.set.key)
                                                    for key, rows in rows_of.items()]) if full and entries else None
                     for m in metrics},
            "gmacs": _mean([e["gmacs"] for e in entries.values()]),
            "milliseconds": _mean([e["milliseconds"] for e in entries.values()])}


def _label(result, n):
    """The set's state as far as this model scored it."""
    if n == result.images:
        return result.label
    return f"partial, {n} of {result.entry.set.count or len(result.located.items)}"


def _mean(values):
    return sum(values) / len(values) if values and None not in values else None


def _published(results, entries, models):
    """Published rows of these entries or this suite, each number with whether it may be compared and, if not, why."""
    protocol, found = results.suite.protocol, []
    for row in catalog.published():
        if not (row.values.keys() & entries.keys() or results.suite.name in row.mean):
            continue
        theirs = catalog.protocols()[row.protocol]
        values = {}
        for key, value in row.values.items():
            if key in entries:
                state = entries[key]
                why = _difference(theirs, protocol, state["sigma"]) or ("" if state["complete"] else f"set {state['label']}")
                values[key] = {"value": value, "why_not": why, "differences": {} if why else {
                    m["name"]: m["entries"][key]["psnr"]["mean"] - value
                    for m in models if key in m["entries"] and m["entries"][key]["n"] == state["scored"]}}
        mean = None
        if results.suite.name in row.mean:
            incomplete = [e["title"] for e in entries.values() if not e["complete"]]
            why = _difference(theirs, protocol, max((e["sigma"] or 0 for e in entries.values()), default=0)) \
                or ("" if results.suite.complete else "not the whole suite") \
                or (f"not complete: {', '.join(incomplete)}" if incomplete else "")
            value = row.mean[results.suite.name]
            mean = {"value": value, "why_not": why, "differences": {} if why else {
                m["name"]: m["mean"]["psnr"]["mean"] - value for m in models
                if m["mean"].get("psnr") and all(m["entries"][k]["n"] == e["scored"] for k, e in entries.items())}}
        found.append({"model": row.model, "protocol": row.protocol, "mark": row.mark, "source": row.source, "note": row.note,
                      "values": values, "mean": mean, "parameters": None if row.parameters is None else row.parameters * 1e6,
                      "gmacs": row.gmacs, "macs_at": row.macs_at})
    return found


def _difference(theirs, ours, sigma):
    """Why two protocols do not give the same PSNR, or "" where they do: the noise rule matters only where noise is made."""
    psnr = [next((m for m in p.metrics if m.name == "psnr"), None) for p in (theirs, ours)]
    if None in psnr:
        return f"protocol {theirs.name}, and no PSNR here"
    same = ((not sigma or theirs.noise == ours.noise) and theirs.align == ours.align and theirs.border == ours.border
            and theirs.round == ours.round and theirs.limit == ours.limit and psnr[0] == psnr[1])
    return "" if same else f"protocol {theirs.name}"


def _pairs(results, by_model):
    """Every two models on the images that both have, per entry and metric."""
    found = []
    for first, second in itertools.combinations([c.name for c in results.competitors], 2):
        for result in results.entries:
            key = result.entry.key
            rows = [{row["image"]: row for row in by_model[name][key]} for name in (first, second)]
            both = [image for image in rows[0] if image in rows[1]]
            for metric in results.suite.protocol.metrics if both else ():
                values = [[side[image][metric.name] for image in both] for side in rows]
                found.append({"first": first, "second": second, "entry": key, "metric": metric.name,
                              **statistics.compare(*values, result.entry.set.key, metric.better)})
    return found
