"""What two decisions disagree on: which images, by which rules, and which limits differ."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from restore import page
from restore.errors import RestoreError
from restore.files import write_bytes

from . import decide
from .store import Store

EXAMPLES = 8


@dataclass
class Change:
    """Images on which the decisions differ in one way: how many, by which rules, and a few of them.

    rules: of the decision that rejects. examples: (row in the scan that has it, rules).
    """

    title: str
    count: int = 0
    rules: Counter = field(default_factory=Counter)
    examples: list = field(default_factory=list)
    side: str = "b"                        # whose scan the rows are of


def diff(a, b, html=None):
    """Compare two work folders; returns the comparison as text, and writes a page with pictures when ``html`` is a path.

    Images are matched by id, so the folders may hold different images too.
    """
    stores = {"a": Store(a), "b": Store(b)}
    for store in stores.values():
        if not store.folder.is_dir():
            raise RestoreError(f"{store.folder}: no such work folder")
        store.require("decide")
    limits = _limits(*(decide.thresholds(store.path("decide", "thresholds.yaml")) for store in stores.values()))
    tables = {name: store.read("decide", ["id", "keep", "rules"]) for name, store in stores.items()}
    changes = _changes(tables)
    if html:
        write_bytes(html, _page(stores, tables, limits, changes))
    return _text(stores, tables, limits, changes)


def _changes(tables):
    a, b = tables["a"], tables["b"]
    place = pc.index_in(a["id"], value_set=b["id"].combine_chunks() if len(b) else pa.array([], pa.string()))
    shared = np.flatnonzero(pc.is_valid(place).to_numpy())
    there = place.to_numpy(zero_copy_only=False)[shared].astype(np.int64)
    keep_a, keep_b = (t["keep"].to_numpy(zero_copy_only=False).astype(bool) for t in (a, b))
    out = _change("kept by a, rejected by b", "b", b, there[keep_a[shared] & ~keep_b[there]])
    back = _change("rejected by a, kept by b", "a", a, shared[~keep_a[shared] & keep_b[there]])
    other = Change("rejected by both, by other rules")
    both = np.flatnonzero(~keep_a[shared] & ~keep_b[there])
    rules = zip(a["rules"].take(shared[both]).to_pylist(), b["rules"].take(there[both]).to_pylist(), there[both])
    for in_a, in_b, row in rules:
        if set(in_a) != set(in_b):
            other.count += 1
            gone, come = ([f"{sign}{name}" for name in names] for sign, names in (
                ("-", [n for n in in_a if n not in in_b]), ("+", [n for n in in_b if n not in in_a])))
            other.rules.update(gone + come)
            if len(other.examples) < EXAMPLES:
                other.examples.append((int(row), gone + come))
    missing = np.ones(len(b), bool)
    missing[there] = False
    only_a = _change("only in a", "a", a, np.setdiff1d(np.arange(len(a)), shared))
    only_b = _change("only in b", "b", b, np.flatnonzero(missing))
    return [out, back, other, only_a, only_b]


def _change(title, side, table, rows):
    """Counts over rows of a decision, and examples evenly spread over them."""
    change = Change(title, len(rows), side=side)
    if len(rows):
        for entry in pc.value_counts(pc.list_flatten(table["rules"].take(rows))).to_pylist():
            change.rules[entry["values"]] = entry["counts"]
        some = rows[np.unique(np.linspace(0, len(rows) - 1, EXAMPLES).astype(int))]
        change.examples = list(zip(map(int, some), table["rules"].take(some).to_pylist()))
    return change


def _limits(a, b):
    """Lines about rules that differ."""
    lines = []
    for name in [*a, *(name for name in b if name not in a)]:
        if name not in a or name not in b:
            lines.append(f"{name}: only in {'a' if name in a else 'b'}")
            continue
        if a[name]["action"] != b[name]["action"]:
            lines.append(f"{name}: {a[name]['action']} -> {b[name]['action']}")
        old, new = ([decide.describe(c) for c in decide.conditions(rule)] for rule in (a[name], b[name]))
        if old != new or ("any" in a[name]) != ("any" in b[name]):
            gone, come = [c for c in old if c not in new], [c for c in new if c not in old]
            lines.append(f"{name}: {', '.join(gone) or 'nothing'} -> {', '.join(come) or 'nothing'}")
    return lines


def _names(store, rows):
    """``row -> "source/name"``."""
    from .thumbnails import Pictures
    pictures = Pictures(store, rows)
    return {row: pictures.name(row) for row in rows}


def _summary(stores, tables):
    for name, table in tables.items():
        kept = pc.sum(table["keep"]).as_py() or 0
        yield f"{name}: {stores[name].folder}: {kept} of {len(table)} kept"


def _text(stores, tables, limits, changes):
    differing = ["limits that differ:", *(f"  {line}" for line in limits)] if limits else ["the limits are the same"]
    lines = [*_summary(stores, tables), "", *differing, ""]
    for change in changes:
        if not change.count and change.title.startswith("only"):
            continue
        lines.append(f"{change.title}: {change.count}")
        if change.rules:
            lines.append("  rules: " + ", ".join(f"{name} {count}" for name, count in change.rules.most_common()))
        names = _names(stores[change.side], [row for row, _ in change.examples])
        lines += [f"  {names[row]}" + (f"  ({', '.join(rules)})" if rules else "") for row, rules in change.examples]
    return "\n".join(lines)


def _page(stores, tables, limits, changes):
    from .thumbnails import Pictures
    body = [page.tag("p", line) for line in _summary(stores, tables)]
    body += [page.heading("Limits that differ"), page.tag("ul", [page.tag("li", line) for line in limits] or "none")]
    for change in changes:
        body.append(page.heading(f"{change.title}: {change.count}"))
        if change.rules:
            body.append(page.table(["rule", "images"], [[name, count] for name, count in change.rules.most_common()]))
        pictures = Pictures(stores[change.side], [row for row, _ in change.examples])
        cells = []
        for row, rules in change.examples:
            source = pictures.whole(row)
            cells.append(page.figure(page.image(source, pictures.name(row)) if source else "cannot be shown",
                                     f"{pictures.name(row)}: {', '.join(rules) or 'kept'}"))
        body.append(page.tag("div", cells, class_="examples"))
    style = (".examples { display: flex; flex-wrap: wrap; gap: 1rem; } "
             ".examples figure { width: 160px; overflow-wrap: anywhere; }")
    return page.document("Two decisions", body, style)
