"""The numbers of a run for people and programs: Markdown, LaTeX, CSV and Parquet, all made from ``summary.summarise``."""

import io

NOT_COMPARABLE = "n/c"


def columns(metrics):
    """Names of the per-image columns, in order."""
    return ["model", "entry", "state", "protocol", "image", "sigma", "height", "width", *metrics, "gmacs", "milliseconds"]


def csv_text(rows, metrics):
    """Per-image results as CSV; floats in full, so that reading them back gives the same numbers."""
    import csv
    text = io.StringIO()
    writer = csv.DictWriter(text, columns(metrics), lineterminator="\n")
    writer.writeheader()
    writer.writerows({k: "" if v is None else v for k, v in row.items()} for row in rows)
    return text.getvalue()


def parquet_bytes(csv, metrics):
    """The same as a Parquet file, made from the text of :func:`csv_text`."""
    import pyarrow.csv
    import pyarrow.parquet
    texts, whole = ("model", "entry", "state", "protocol", "image"), ("height", "width")
    types = {name: pyarrow.string() if name in texts else pyarrow.int32() if name in whole else pyarrow.float64()
             for name in columns(metrics)}
    # through the CSV reader, since pyarrow imports pandas to look at Python lists, which takes longer than scoring an image
    options = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types))
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.csv.read_csv(io.BytesIO(csv.encode()), convert_options=options), sink)
    return sink.getvalue()


def markdown(summary):
    """The report as Markdown: protocol, sets, results, comparison with published numbers, pairs, cost."""
    parts = [f"# {summary['title']}", f"Protocol: {summary['protocol_text']}.", _sets(summary), "## Results", _results(summary)]
    intervals = _intervals(summary)
    if intervals:
        parts += ["95 % bootstrap intervals over images:", intervals]
    if summary["published"]:
        parts += ["## Against published numbers", _published(summary)]
    if summary["pairs"]:
        parts += ["## Pairwise, on the same images", _pairs(summary)]
    return "\n\n".join([*parts, *_failed(summary), footer(summary)]) + "\n"


def terminal(summary):
    """What a run prints: sets, results, failures and cost; the rest is in the report."""
    return "\n\n".join([f"Protocol: {summary['protocol_text']}.", _sets(summary), _results(summary), *_failed(summary),
                        cost_line(summary)])


def _failed(summary):
    notes = [f"- {m['name']}: {m['note']}" for m in summary["models"] if m["note"]]
    failed = [f"- {line}" for line in summary["failed"]]
    return (["## Notes", "\n".join(notes)] if notes else []) + (["## Failed", "\n".join(failed)] if failed else [])


def entry_title(entry):
    """A column's heading; a set that is not complete never appears without saying so."""
    return entry["title"] if entry["complete"] else f"{entry['title']} ({entry['label']})"


def shown(summary):
    """The entries that have a score."""
    with_scores = {key for model in summary["models"] for key in model["entries"]}
    return [entry for entry in summary["entries"] if entry["key"] in with_scores]


def main_metrics(summary):
    """The first two metrics, which share a cell, and whether there are only these few (not for photos)."""
    names = list(summary["metrics"])
    return names[:2] if names[:1] == ["psnr"] else names


def score_cell(model, key, names, summary):
    """"31.44 / 0.8912" of one model on one entry, with the model's own state where it misses images."""
    scores = model["entries"].get(key)
    if scores is None:
        return "-"
    entry = next(e for e in summary["entries"] if e["key"] == key)
    text = " / ".join(number(scores[name]["mean"], name) for name in names)
    return text if scores["n"] == entry["scored"] else f"{text} ({scores['label']})"


def number(value, metric):
    """A score with the digits that its metric deserves."""
    return f"{value:.4f}" if metric.startswith("ssim") else f"{value:.3f}" if metric in ("fade", "contrast") else f"{value:.2f}"


def size(value, unit=1.0, digits=2):
    """``value / unit`` as text, "-" for None."""
    return "-" if value is None else f"{value / unit:.{digits}f}"


def footer(summary):
    """What computed the numbers and what the benchmark itself cost."""
    versions = ", ".join(f"{key} {value}" for key, value in summary["versions"].items())
    return f"{cost_line(summary)}\n\nComputed with {versions}."


def cost_line(summary):
    """The benchmark's own share of the CPU time, or that everything came from the cache."""
    clock = summary["clock"]
    if not clock["network_wall"]:
        return "Every result came from the cache."
    own = clock["own"] + clock.get("report", 0.0)
    text = (f"Decoding, noise, scores and crops{' and the report' if 'report' in clock else ''} took {own:.1f} s of CPU, "
            f"the models {clock['network']:.1f} s")
    return f"{text}: {100 * own / clock['network']:.1f} % on top." if clock["network"] > own else f"{text}."


def _sets(summary):
    head = ["set", "state", "scored", "of", "inputs crc32", "published at"]
    rows = [[e["title"], e["label"], e["scored"], "-" if e["expected"] is None else e["expected"],
             e["inputs_crc32"] if e["scored"] else "-", "" if e["scored"] else e["published"]] for e in summary["entries"]]
    lines = [f"- {line}" for line in entry_lines(summary)]
    return table(head, rows) + ("\n\n" + "\n".join(lines) if lines else "")


def entry_lines(summary):
    """What is wrong with the sets, each thing once however many noise levels a set has."""
    sets = {e["key"]: e["title"].split(" \u03c3=")[0] for e in summary["entries"]}
    return list(dict.fromkeys(f"{sets[e['key']]}: {line}" for e in summary["entries"]
                              for line in (*e["errors"], *e["notes"], *e["problems"])))


def _results(summary):
    names, entries = main_metrics(summary), shown(summary)
    if names[0] != "psnr":
        head = ["model", "set", *summary["metrics"], "n"]
        return table(head, [[m["name"], entry_title(e), *(number(m["entries"][e["key"]][k]["mean"], k)
                                                          for k in summary["metrics"]), m["entries"][e["key"]]["n"]]
                            for e in entries for m in summary["models"] if e["key"] in m["entries"]])
    label = " / ".join(n.upper() for n in names)
    head = ["model", *(f"{entry_title(e)} {label}" for e in entries), f"mean {label}", "params M", "GMACs", "ms", "MiB"]
    rows = [[m["name"], *(score_cell(m, e["key"], names, summary) for e in entries), mean_cell(m, names, summary),
             size(m["parameters"], 1e6), size(m["gmacs"]), size(m["milliseconds"], digits=1), size(m["memory_mib"], digits=0)]
            for m in summary["models"]]
    text = table(head, rows)
    extra = [name for name in summary["metrics"] if name not in names]
    for name in extra:
        text += f"\n\n{name}:\n\n" + table(["model", *(entry_title(e) for e in entries)], [
            [m["name"], *(score_cell(m, e["key"], [name], summary) for e in entries)] for m in summary["models"]])
    return text


def mean_cell(model, names, summary):
    """The mean over all entries; of incomplete sets it says so, of missing ones there is none."""
    if model["mean"].get(names[0]) is None:
        return "-"
    text = " / ".join(number(model["mean"][name]["mean"], name) for name in names)
    return text if summary["complete"] else f"{text} (partial)"


def _intervals(summary):
    names, entries = main_metrics(summary), shown(summary)
    if names[0] != "psnr" or not entries:
        return ""
    def cell(score):
        return "-" if score is None else f"{score['mean']:.2f} [{score['low']:.2f}, {score['high']:.2f}]"
    return table(["model", *(f"{entry_title(e)} PSNR" for e in entries), "mean PSNR"], [
        [m["name"], *(cell(m["entries"].get(e["key"], {}).get("psnr")) for e in entries), cell(m["mean"].get("psnr"))]
        for m in summary["models"]])


def _published(summary):
    """Every published number with its mark; then, where protocol and set are the same, each model's difference from it."""
    titles = published_titles(summary)
    rows = [[row["model"], row["source"] or "-", *(published_cell(row, key) for key in titles), row["note"]]
            for row in summary["published"]]
    text = table(["published", "source", *titles.values(), "note"], rows)
    reasons = not_comparable(summary)
    if reasons:
        text += f"\n\n{NOT_COMPARABLE}, not comparable: {'; '.join(reasons)}."
    differences = [[m["name"], row["model"], *("-" if (value := published_value(row, key)) is None
                                              or m["name"] not in value["differences"]
                                              else f"{value['differences'][m['name']]:+.2f} ({row['mark']})" for key in titles)]
                   for m in summary["models"] for row in summary["published"]]
    differences = [cells for cells in differences if set(cells[2:]) != {"-"}]
    if differences:
        text += "\n\nDifference in dB, under the same protocol on the complete set:\n\n" \
            + table(["model", "minus published", *titles.values()], differences)
    return ("PSNR in dB. (S) from the primary source, (M) measured, (2) quoted by a third party.\n\n" + text)


def published_titles(summary):
    """``{entry key or "mean": heading}`` of the columns for which numbers were published."""
    keys = {key for row in summary["published"] for key in row["values"]}
    titles = {e["key"]: entry_title(e) for e in summary["entries"] if e["key"] in keys}
    return titles | ({"mean": "mean"} if any(row["mean"] for row in summary["published"]) else {})


def published_value(row, key):
    """What a published row says of an entry, or of the mean; None where it says nothing."""
    return row["mean"] if key == "mean" else row["values"].get(key)


def published_cell(row, key):
    """"31.44 (S)", with n/c where it may not be compared."""
    value = published_value(row, key)
    if value is None:
        return "-"
    return f"{value['value']:.2f} ({row['mark']}{', ' + NOT_COMPARABLE if value['why_not'] else ''})"


def not_comparable(summary):
    """Reasons, each once, with the columns that they concern."""
    titles, found = published_titles(summary), {}
    for row in summary["published"]:
        for key in titles:
            value = published_value(row, key)
            if value and value["why_not"]:
                found.setdefault(value["why_not"], {})[titles[key].split(" (")[0]] = None
    return [f"{', '.join(columns)}: {why}" for why, columns in found.items()]


def _pairs(summary):
    titles = {e["key"]: entry_title(e) for e in summary["entries"]}
    rows = [[p["first"], p["second"], titles[p["entry"]], p["metric"], f"{p['difference']:+.4f}", f"[{p['low']:+.4f}, {p['high']:+.4f}]",
             f"{p['wins']} / {p['losses']} / {p['ties']}"] for p in summary["pairs"]]
    return table(["first", "second", "set", "metric", "first - second", "95 % interval", "wins / losses / ties"], rows)


def table(head, rows):
    """A Markdown table."""
    def line(cells):
        return "| " + " | ".join(str(c).replace("|", "\\|") for c in cells) + " |"
    return "\n".join([line(head), line(["---"] * len(head)), *map(line, rows)])


def latex(summary):
    """The table of results for a paper (booktabs), with the protocol in its caption."""
    names, entries = main_metrics(summary), shown(summary)
    caption = f"{summary['title']}. {summary['protocol_text']}. JPEG by {summary['versions']['jpeg decoder']}."
    lines = ["% needs \\usepackage{booktabs}", "\\begin{table}", "\\centering", f"\\caption{{{_escape(caption)}}}"]
    if names[0] == "psnr":
        head = ["model", *(entry_title(e) for e in entries), "mean", "params (M)", "GMACs"]
        rows = [[m["name"], *(score_cell(m, e["key"], names, summary) for e in entries), mean_cell(m, names, summary),
                 size(m["parameters"], 1e6), size(m["gmacs"])] for m in summary["models"]]
        foreign = [[f"{row['model']} ({row['mark']}, published)",
                    *(_foreign(row["values"].get(e["key"])) for e in entries), _foreign(row["mean"]),
                    size(row["parameters"], 1e6), "-" if row["gmacs"] is None else f"{row['gmacs']:g} at {row['macs_at']}"]
                   for row in summary["published"]]
    else:
        head, foreign = ["model", "set", *names], []
        rows = [[m["name"], entry_title(e), *(number(m["entries"][e["key"]][k]["mean"], k) for k in names)]
                for e in entries for m in summary["models"] if e["key"] in m["entries"]]
    lines += [f"\\begin{{tabular}}{{l{'c' * (len(head) - 1)}}}", "\\toprule", _row(head), "\\midrule", *map(_row, rows)]
    if foreign:
        lines += ["\\midrule", *map(_row, foreign)]
    lines += ["\\bottomrule", "\\end{tabular}"]
    if foreign:
        lines.append("\\par\\smallskip\\footnotesize S: primary source, M: measured, 2: quoted by a third party. "
                     "$\\dagger$: not comparable (another protocol or an incomplete set).")
    return "\n".join([*lines, "\\end{table}", ""])


def _foreign(value):
    if value is None:
        return "-"
    return f"{value['value']:.2f}" + ("\u2020" if value["why_not"] else "")


def _row(cells):
    return " & ".join(_escape(cell) for cell in cells) + r" \\"


def _escape(text):
    text = str(text).replace("\\", "\\textbackslash ")
    for sign in "&%$#_{}":
        text = text.replace(sign, f"\\{sign}")
    return text.replace("\u2020", "$\\dagger$").replace("\u03c3", "$\\sigma$").replace("~", "\\textasciitilde ")
