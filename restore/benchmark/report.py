"""The report's files: report.md, report.tex, report.json, report.html, results.parquet, results.csv and the curves as SVG."""

import itertools
import json
import math
from pathlib import Path

import numpy as np

from .. import page
from ..files import write_bytes
from . import curves, tables
from .gallery import difference_map

STYLE = """.pair { display: grid; grid-template-columns: 1fr 1fr; gap: 4px; align-items: start; }
.pair img { width: 100%; display: block; border-radius: 4px; }
details { margin: .4rem 0; } summary { cursor: pointer; }
td .note { white-space: nowrap; }
"""
PER_IMAGE_LIMIT = 3000                        # rows of the per-image table in the page; the CSV has all


def write_report(results, summary, out):
    """Write every file of the report into ``out`` and return their paths."""
    out = Path(out)
    metrics = list(summary["metrics"])
    drawn, csv = quality_curves(summary), tables.csv_text(results.rows, metrics)
    files = {"report.md": tables.markdown(summary), "report.tex": tables.latex(summary),
             "report.json": json.dumps(_finite(summary), indent=1) + "\n", "results.csv": csv,
             "results.parquet": tables.parquet_bytes(csv, metrics), "report.html": html_page(results, summary, drawn),
             **{f"curve-{key}.svg": svg for key, svg in drawn.items()}}
    for name, content in files.items():
        write_bytes(out / name, content)
    return [out / name for name in files]


def _finite(value):
    """JSON has no infinity and no NaN."""
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def quality_curves(summary):
    """``{entry key or "mean": SVG}`` of PSNR against MACs; models of one source at several depths are joined."""
    if "psnr" not in summary["metrics"]:
        return {}
    found = {}
    for entry in [*tables.shown(summary), None]:
        points, areas = [], []
        for model in summary["models"]:
            scores = model["entries"].get(entry["key"]) if entry else model["mean"]
            gmacs = (scores or {}).get("gmacs") if entry else model["gmacs"]
            if scores and scores.get("psnr") and gmacs:
                points.append(curves.Point(gmacs, scores["psnr"]["mean"], model["name"], model["source"]))
                areas.append(entry and entry["pixels"] or summary["pixels"])
        for row in summary["published"] if points else ():
            value = row["values"].get(entry["key"]) if entry else row["mean"]
            if value and not value["why_not"] and row["gmacs"]:
                scaled = row["gmacs"] * areas[0] / row["macs_at"] ** 2
                points.append(curves.Point(scaled, value["value"], f"{row['model']} ({row['mark']})", row["model"], hollow=True))
        title = tables.entry_title(entry) if entry else f"mean{'' if summary['complete'] else ' (partial)'}"
        svg = curves.quality_against_cost(points, title, "PSNR, dB")
        if svg:
            found[entry["key"] if entry else "mean"] = svg
    return found


def html_page(results, summary, drawn):
    """The whole report as one page that loads nothing."""
    body = [page.paragraph(f"Protocol: {summary['protocol_text']}."), _sets(summary), page.heading("Results"), _results(summary)]
    if not all(entry["complete"] for entry in summary["entries"]):
        body.insert(1, page.paragraph("Not every set is complete: numbers of a partial set are never compared with published "
                                      "ones, and a mean over it is marked (partial).", "warn"))
    if drawn:
        body += [page.heading("Quality against cost"), page.grid(page.figure(svg) for svg in drawn.values()),
                 page.paragraph("Filled: measured here, MACs at the images' own size, depths of one network joined. Hollow: "
                                "published, their MACs scaled by area.", "note")]
    if summary["published"]:
        body += [page.heading("Against published numbers"), _published(summary)]
    if summary["pairs"]:
        body += [page.heading("Two models on the same images"), _pairs(summary), _scatters(results, summary)]
    body += _galleries(results, summary)
    body += [page.paragraph(f"{m['name']}: {m['note']}.", "warn") for m in summary["models"] if m["note"]]
    if summary["failed"]:
        body += [page.heading("Failed"), page.tag("ul", [page.tag("li", line) for line in summary["failed"]])]
    body += [page.heading("Every image"), _images(results, summary), page.heading("How it was computed"),
             *(page.paragraph(text) for text in tables.footer(summary).split("\n\n")),
             page.tag("details", [page.tag("summary", "Settings and protocol in full"),
                                  page.tag("pre", json.dumps({"settings": summary["settings"], "protocol": summary["protocol"]},
                                                             indent=1))])]
    return page.document(f"{summary['title']} ({summary['suite']})", body, style=STYLE)


def _sets(summary):
    rows = [[e["title"], e["label"], e["scored"], page.number(e["expected"], "d", missing="-"),
             page.Html(f"<code>{e['inputs_crc32']}</code>") if e["scored"] else "-", "" if e["scored"] else e["published"]]
            for e in summary["entries"]]
    lines = tables.entry_lines(summary)
    return [page.heading("Sets"), page.table(["set", "state", "scored", "of", "inputs crc32", "published at"], rows),
            page.tag("ul", [page.tag("li", line) for line in lines]) if lines else None]


def _results(summary):
    entries, metrics = tables.shown(summary), summary["metrics"]
    best = {(e["key"], m): _best([model["entries"][e["key"]][m]["mean"] for model in summary["models"] if e["key"] in
                                  model["entries"]], better) for e in entries for m, better in metrics.items()}
    if tables.main_metrics(summary)[0] != "psnr":
        rows = [[m["name"], tables.entry_title(e), *(_score(m["entries"][e["key"]][k], k, best[e["key"], k]) for k in metrics)]
                for e in entries for m in summary["models"] if e["key"] in m["entries"]]
        return page.table(["model", "set", *metrics], rows)
    best_mean = {m: _best([model["mean"][m]["mean"] for model in summary["models"] if model["mean"][m]], better)
                 for m, better in metrics.items()}
    heads = ["model", *(f"{tables.entry_title(e)} {m}" for e in entries for m in metrics),
             *(f"mean {m}{'' if summary['complete'] else ' (partial)'}" for m in metrics), "parameters, M", "GMACs", "ms", "MiB"]
    rows = [[m["name"], *(_score(m["entries"].get(e["key"], {}).get(k), k, best[e["key"], k]) for e in entries for k in metrics),
             *(_score(m["mean"][k], k, best_mean[k]) for k in metrics), page.number(_over(m["parameters"], 1e6), ".2f"),
             page.number(m["gmacs"], ".2f"), page.number(m["milliseconds"], ".1f"), page.number(m["memory_mib"], ".0f")]
            for m in summary["models"]]
    return [page.table(heads, rows), page.paragraph(
        "Below each number its 95 % bootstrap interval over images. GMACs, ms (median, warmed up) and MiB (peak of one call) "
        "at the images' own size.", "note")]


def _best(values, better):
    return None if better is None or len(values) < 2 else (max if better == "higher" else min)(values)


def _score(score, metric, best):
    if score is None:
        return page.Cell("-", "", "number")
    text = page.Html(f"{tables.number(score['mean'], metric)}<br><span class=\"note\">{tables.number(score['low'], metric)} to "
                     f"{tables.number(score['high'], metric)}</span>")
    return page.Cell(text, repr(score["mean"]), "number best" if score["mean"] == best else "number")


def _over(value, unit):
    return None if value is None else value / unit


def _published(summary):
    """Every published number with its mark and, below it where it may be compared, each model's difference from it."""
    titles = tables.published_titles(summary)
    rows = [[row["model"], row["source"] or "-", *(_published_cell(row, key, len(summary["models"]) > 1) for key in titles),
             row["note"]] for row in summary["published"]]
    reasons = tables.not_comparable(summary)
    return [page.table(["published", "source", *titles.values(), "note"], rows),
            page.paragraph("(S) primary source, (M) measured, (2) quoted by a third party; below it what the models here have "
                           "more, under the same protocol on the complete set." + (
                               f" {tables.NOT_COMPARABLE}, not comparable: {'; '.join(reasons)}." if reasons else ""), "note")]


def _published_cell(row, key, named):
    value = tables.published_value(row, key)
    if value is None:
        return page.Cell("-", "", "number")
    lines = [page.tag("span", f"{name + ' ' if named else ''}{difference:+.2f}", class_="note")
             for name, difference in value["differences"].items()]
    text = page.Html("<br>".join([page.markup(tables.published_cell(row, key)), *lines]))
    return page.Cell(text, repr(value["value"]), "number")


def _pairs(summary):
    titles = {e["key"]: tables.entry_title(e) for e in summary["entries"]}
    rows = [[p["first"], p["second"], titles[p["entry"]], p["metric"], page.number(p["difference"], "+.4f"),
             page.Cell(f"{p['low']:+.4f} to {p['high']:+.4f}", p["low"], "number"), p["wins"], p["losses"], p["ties"]] for p in summary["pairs"]]
    return page.table(["first", "second", "set", "metric", "first - second", "95 % interval", "wins", "losses", "ties"], rows)


def _scatters(results, summary, limit=24):
    """A chart for every two models and entry, of the first metric, as many as a page bears."""
    metric = next(iter(summary["metrics"]))
    values = {}
    for row in results.rows:
        values.setdefault((row["entry"], row["model"]), {})[row["image"]] = row[metric]
    figures = []
    for entry in tables.shown(summary):
        for first, second in itertools.combinations([m["name"] for m in summary["models"]], 2):
            a, b = (values.get((entry["key"], name), {}) for name in (first, second))
            both = [name for name in a if name in b]
            if both and len(figures) < limit:
                figures.append(page.figure(curves.scatter([a[n] for n in both], [b[n] for n in both], both,
                                                          (f"{first}, {metric}", f"{second}, {metric}"), tables.entry_title(entry))))
    return page.grid(figures)


def _galleries(results, summary):
    titles = {e["key"]: tables.entry_title(e) for e in summary["entries"]}
    parts = []
    for (model, entry), gallery in results.galleries.items():
        if all(np.array_equal(crop.degraded, crop.restored) for crop in [*gallery.best, *gallery.worst]):
            continue                                      # the input itself
        for title, crops in (("gained most over the input", gallery.best), ("gained least, or lost", gallery.worst)):
            if crops:
                name = "photos" if crops[0].clean is None else f"crops that {title}"
                parts.append(page.tag("details", [page.tag("summary", f"{model} on {titles[entry]}: {len(crops)} {name}"),
                                                  page.grid(_crop(crop) for crop in crops)]))
    if parts:
        parts[0] = page.Html(parts[0].replace("<details>", "<details open>", 1))
        parts.insert(0, page.heading("Best and worst crops"))
        parts.insert(1, page.paragraph(
            "Drag the edge: left the input, right the output. Beside it the difference from the clean image, from the input for "
            "photos, five times enlarged (black: none).", "note"))
    return parts


def _crop(crop):
    reference = crop.degraded if crop.clean is None else crop.clean
    caption = crop.name if crop.gain is None else f"{crop.name}, {crop.gain:+.2f} dB, at {crop.box[1]}, {crop.box[0]}"
    form = {"quality": 92}
    both = page.tag("div", [page.slider(crop.degraded, crop.restored, ("input", "output"), **form),
                            page.image(difference_map(crop.restored, reference), "difference", **form)], class_="pair")
    return page.figure(both, caption)


def _images(results, summary):
    metrics = list(summary["metrics"])
    rows = [[row["model"], row["entry"], row["image"], *(page.number(row[m], ".4f") for m in metrics),
             page.number(row["milliseconds"], ".1f")] for row in results.rows[:PER_IMAGE_LIMIT]]
    more = len(results.rows) - len(rows)
    return page.tag("details", [page.tag("summary", f"{len(rows)} results"),
                                page.table(["model", "set", "image", *metrics, "ms"], rows),
                                page.paragraph(f"and {more} more in results.csv") if more else None])
