"""What the report shows, gathered in two passes over the tables; bounded, however many rows there are."""

import json
from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from . import decide
from .funnel import Funnel, funnel

SAMPLE = 20_000                            # rows that the page's live counts are made from
EDGES = 160                                # positions of a slider
NEAR, SPREAD = 8, 8                        # pictures beside a limit (on each side), and over the whole range


@dataclass
class Limit:
    """One numeric condition of a rule: where its values lie, and pictures beside its limit.

    edges: positions of the slider, ``edges[at]`` is the limit itself. counts, decisive: histograms over ``edges`` (one
    more bin than edges) of all images, and of those that no other rule rejects. near: (row, value) on either side of the
    limit, the nearest first. spread: (row, value) over the whole range. sample: uint8 bins of the sampled rows, 255 for
    null.
    """

    rule: str
    metric: str
    kind: str
    limit: float
    log: bool = False
    edges: np.ndarray = None
    at: int = 0
    counts: np.ndarray = None
    decisive: np.ndarray = None
    near: dict = field(default_factory=dict)
    spread: list = field(default_factory=list)
    sample: np.ndarray = None

    def bins(self, values):
        """Bin of each value, so that ``value < edges[k]`` is ``bin <= k`` for a lower and ``value > edges[k]`` is
        ``bin > k`` for an upper limit, exactly."""
        return np.searchsorted(self.edges, values, side="right" if self.kind == "below" else "left")


@dataclass
class Gathered:
    """Everything for the page: the rules, counts, limits by rule, sampled truth of the conditions without a slider."""

    rules: dict
    funnel: Funnel
    limits: list
    fixed: dict                            # (rule, place of the condition) -> bool per sampled row
    examples: dict                         # rule -> rows
    sampled: int
    sources: list
    licences: Counter
    errors: list


def gather(store, near=NEAR):
    """Two passes over the metrics of a decided work folder."""
    rules = decide.thresholds(store.path("decide", "thresholds.yaml"))
    rules = {name: rule for name, rule in rules.items() if rule["action"] != "off"}
    limits = [Limit(name, c["metric"], "below" if "below" in c else "above", float(c.get("below", c.get("above"))))
              for name, rule in rules.items() for c in decide.conditions(rule) if "below" in c or "above" in c]
    needed = sorted({c["metric"] for rule in rules.values() for c in decide.conditions(rule)})
    rows = store.rows("measure")
    step = max(1, -(-rows // SAMPLE))
    chosen = decide.chosen_copies(store, rules, needed)
    fixed = _first_pass(decide.metric_tables(store, needed, chosen), rules, limits, step)
    examples = _second_pass(decide.metric_tables(store, needed, chosen), rules, limits, near)
    return Gathered(rules, funnel(store), limits, fixed, examples, len(range(0, rows, step)), *_provenance(store))


def _values(table, metric):
    """A metric as float64, nan where it is null or was not measured."""
    if metric not in table.column_names:
        return np.full(len(table), np.nan)
    return pc.fill_null(pc.cast(table[metric], pa.float64()), float("nan")).to_numpy()


def _first_pass(tables, rules, limits, step):
    """Slider positions and bins from every ``step``-th row; and the truth of conditions that have no slider."""
    sampled, fixed = [[] for _ in limits], {}
    start = 0
    rows = []
    for table in tables:
        picked = np.arange(-start % step, len(table), step)
        rows.append(picked + start)
        start += len(table)
        part = table.take(pa.array(picked))
        for limit, values in zip(limits, sampled):
            values.append(_values(part, limit.metric))
        for name, rule in rules.items():
            for k, condition in enumerate(decide.conditions(rule)):
                if "below" not in condition and "above" not in condition:
                    fixed.setdefault((name, k), []).append(decide.fires(part, {"any": [condition]}))
    rows = np.concatenate(rows) if rows else np.zeros(0, int)
    for limit, values in zip(limits, sampled):
        values = np.concatenate(values) if values else np.zeros(0)
        known = np.isfinite(values)
        _set_edges(limit, values[known])
        limit.sample = np.where(known, limit.bins(values), 255).astype(np.uint8)
        limit.counts = np.zeros(len(limit.edges) + 1, np.int64)
        limit.decisive = np.zeros(len(limit.edges) + 1, np.int64)
        order = np.flatnonzero(known)[np.argsort(values[known], kind="stable")]
        if len(order):
            places = np.unique(np.linspace(0, len(order) - 1, SPREAD + 2).astype(int)[1:-1])
            limit.spread = [(int(rows[order[p]]), float(values[order[p]])) for p in places]
    return {key: np.concatenate(parts) for key, parts in fixed.items()}


def _set_edges(limit, values):
    """Slider positions over the values, without the extremes, the limit among them exactly; logarithmic for long tails."""
    limit_ = limit.limit
    low, middle, high = (np.quantile(values, (0.002, 0.5, 0.998)) if len(values) else (limit_, limit_, limit_))
    low, high = min(low, limit_), max(high, limit_)
    if high <= low:
        low, high = low - max(1.0, abs(low)) / 2, high + max(1.0, abs(high)) / 2
    margin = 0.03 * (high - low)
    limit.log = bool(low > 0 and high / low > 30 and middle < low + 0.25 * (high - low))
    if limit.log:
        low, high, at = np.log(low) - 0.05, np.log(high) + 0.05, np.log(limit_)
    else:
        low, high, at = low - margin if low < 0 or low - margin > 0 else min(low, 0.0), high + margin, limit_
    first = int(np.clip(round((at - low) / (high - low) * (EDGES - 1)), 0, EDGES - 1))
    edges = np.concatenate([np.linspace(low, at, first + 1), np.linspace(at, high, EDGES - first)[1:]])
    edges = np.exp(edges) if limit.log else edges
    edges = np.array([float(f"{edge:.4g}") for edge in edges])       # numbers that one would write into a recipe
    edges[first] = limit_
    keep = np.concatenate([[True], np.diff(edges) > 0]) | (np.arange(len(edges)) == first)
    edges = np.unique(edges[keep])
    limit.edges, limit.at = edges, int(np.searchsorted(edges, limit_))


def _second_pass(tables, rules, limits, near):
    """Histograms over all rows, pictures beside the limits, and examples of what the other rules reject."""
    beside = {(k, side): [np.zeros((0, 4))] for k in range(len(limits)) for side in ("fires", "spares")}
    examples = {name: [np.zeros((0, 2))] for name in rules}
    start = 0
    for table in tables:
        fired = {name: decide.fires(table, rule) for name, rule in rules.items()}
        reject = np.zeros(len(table), np.int32)
        for name, rule in rules.items():
            reject += fired[name] if rule["action"] == "reject" else 0
        rows = np.arange(start, start + len(table))
        start += len(table)
        for name, hits in fired.items():
            others = reject - (hits if rules[name]["action"] == "reject" else 0)
            chosen = np.flatnonzero(hits)
            examples[name] = [_best(np.concatenate([*examples[name], np.stack([others[chosen], rows[chosen]], 1)]), near)]
        for k, limit in enumerate(limits):
            values = _values(table, limit.metric)
            known = np.isfinite(values)
            others = reject - (fired[limit.rule] if rules[limit.rule]["action"] == "reject" else 0)
            bins = limit.bins(values[known])
            limit.counts += np.bincount(bins, minlength=len(limit.counts))
            limit.decisive += np.bincount(bins[others[known] == 0], minlength=len(limit.counts))
            fires = values < limit.limit if limit.kind == "below" else values > limit.limit
            for side, chosen in (("fires", fires), ("spares", ~fires)):
                chosen = np.flatnonzero(chosen & known)
                table_ = np.stack([others[chosen] > 0, abs(values[chosen] - limit.limit), rows[chosen], values[chosen]], 1)
                beside[k, side] = [_best(np.concatenate([*beside[k, side], table_]), near)]
    for (k, side), (found,) in beside.items():
        limits[k].near[side] = [(int(row), float(value)) for _, _, row, value in found]
    return {name: [int(row) for _, row in found[0]] for name, found in examples.items()}


def _best(table, count):
    """The first ``count`` rows in lexicographic order of the columns."""
    return table[np.lexsort(table.T[::-1])[:count]]


def _provenance(store):
    """Counts by source and by licence, and the commonest errors."""
    totals, kept, broken, groups, licences, errors = Counter(), Counter(), Counter(), {}, Counter(), Counter()
    example = {}
    decision = store.read("decide", ["keep"])["keep"]
    start = 0
    facts = ["source", "name", "licence", "group"]
    for scan, measure in zip(store.batches("scan", facts), store.batches("measure", ["error"])):
        keep = decision.slice(start, len(scan))
        start += len(scan)
        bad = pc.is_valid(measure["error"])
        for counter, table in ((totals, scan), (kept, scan.filter(keep)), (broken, scan.filter(bad))):
            for entry in pc.value_counts(table["source"]).to_pylist():
                counter[entry["values"]] += entry["counts"]
        for entry in pc.value_counts(scan.filter(keep)["licence"]).to_pylist():
            licences[entry["values"] or "none stated"] += entry["counts"]
        for source, group in {(s, g) for s, g in zip(scan["source"].to_pylist(), scan["group"].to_pylist())}:
            groups.setdefault(source, set()).add(hash(group))
        found = pc.is_valid(measure["error"])
        for source, name, error in zip(scan["source"].filter(found).to_pylist(), scan["name"].filter(found).to_pylist(),
                                       measure["error"].filter(found).to_pylist()):
            kind = error.split(":")[0]
            errors[kind] += 1
            example.setdefault(kind, f"{source}/{name}: {error}")
    sources = [(name, totals[name], kept[name], broken[name], len(groups[name])) for name in totals]
    return sources, licences, [(kind, count, example[kind]) for kind, count in errors.most_common()]


def live(gathered):
    """The JSON that the page's sliders compute with: one byte per sampled row and condition, base64."""
    import base64
    limits = {}
    for k, limit in enumerate(gathered.limits):
        limits.setdefault((limit.rule, limit.metric, limit.kind, limit.limit), k)
    rules = []
    for name, rule in gathered.rules.items():
        parts, none = [], np.zeros(gathered.sampled)
        for k, c in enumerate(decide.conditions(rule)):
            kind = "below" if "below" in c else "above" if "above" in c else None
            if kind:
                parts.append({"limit": limits[name, c["metric"], kind, float(c[kind])]})
            else:
                truth = gathered.fixed.get((name, k), none).astype(np.uint8)
                parts.append({"fixed": base64.b64encode(truth.tobytes()).decode()})
        rules.append({"name": name, "rejects": rule["action"] == "reject", "any": "any" in rule, "parts": parts})
    return json.dumps({
        "rows": gathered.funnel.rows, "sampled": gathered.sampled, "rules": rules,
        "limits": [{"rule": limit.rule, "metric": limit.metric, "below": limit.kind == "below", "at": limit.at,
                    "edges": limit.edges.tolist(), "bins": base64.b64encode(limit.sample.tobytes()).decode()}
                   for limit in gathered.limits]})
