"""The decision: thresholds, which are data, applied to the tables. No image is read, so it takes seconds and can be
repeated as often as one likes.

A thresholds file is YAML; each rule has conditions, of which ``any`` or ``all`` must hold for it to fire::

    blurry:
      why: no part of it is sharp                     # shown in reports
      any:
        - {metric: sharpness, below: 0.92}            # or above: X, is: true, one_of: [a, b]
        - {metric: sharpness_2, below: 1.0}
    noisy:
      action: flag                                    # reject (the default), flag, or off
      any: [{metric: noise, above: 4}]

A metric that is null (not measured, or it has no meaning for this image) fires nothing. Every rule that fired is
recorded for every image. Besides the columns of the measure table there are ``error`` (its kind), ``duplicate`` and
``contaminated`` from the join, and the columns of later passes and plug-ins.
"""

import copy
import difflib
import hashlib
import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from restore.errors import RestoreError
from restore.files import atomic_path, write_bytes
from restore.recipe import read_yaml

from .measure import METRICS
from .store import DECISION_SCHEMA

DEFAULTS = Path(__file__).parent / "recipes" / "thresholds.yaml"
_TESTS = ("below", "above", "is", "one_of")
_DERIVED = ("error", "duplicate", "contaminated", "watermark", "watermark_source", "niqe")


def thresholds(path=None, changes=None):
    """The rules of a YAML file (default: those shipped), with single ``changes`` of a recipe's ``rules``.

    ``{"blurry": false}`` switches a rule off, ``{"noisy": true}`` makes a flag reject, and
    ``{"blurry.sharpness": 0.8}`` moves a limit. Raises RestoreError naming what is unknown or malformed.
    """
    path = Path(path or DEFAULTS)
    rules = read_yaml(path)
    if not isinstance(rules, dict):
        raise RestoreError(f"{path}: expected rules by name")
    rules = {str(name): _checked(f"{path}: {name}", rule) for name, rule in rules.items()}
    return _changed(rules, changes or {})


def _checked(where, rule):
    if not isinstance(rule, dict) or ("any" in rule) == ("all" in rule):
        raise RestoreError(f"{where}: a rule has conditions under `any` or under `all`")
    unknown = set(rule) - {"any", "all", "action", "why"}
    if unknown:
        raise RestoreError(f"{where}: unknown key {min(unknown)!r}; a rule has any or all, action, why")
    rule = {"action": "reject", "why": "", **rule}
    if rule["action"] is False:            # YAML 1.1 reads a bare `off` as false
        rule["action"] = "off"
    if rule["action"] not in ("reject", "flag", "off"):
        raise RestoreError(f"{where}.action: {rule['action']!r} is none of reject, flag, off")
    for condition in conditions(rule):
        tests = [key for key in condition if key in _TESTS] if isinstance(condition, dict) else []
        if len(tests) != 1 or set(condition) != {"metric", tests[0]}:
            raise RestoreError(f"{where}: a condition is {{metric: NAME, below|above|is|one_of: VALUE}}, "
                               f"not {condition!r}")
        if tests[0] in ("below", "above") and (isinstance(condition[tests[0]], bool)
                                               or not isinstance(condition[tests[0]], (int, float))):
            raise RestoreError(f"{where}: {condition['metric']}: expected a number, got {condition[tests[0]]!r}")
        name = condition["metric"]
        if "." not in name and name not in METRICS and name not in _DERIVED:
            near = difflib.get_close_matches(name, [*METRICS, *_DERIVED], 1, 0.5)
            raise RestoreError(f"{where}: no metric {name!r}" + (f"; did you mean {near[0]}?" if near else ""))
    return rule


def _changed(rules, changes):
    rules = copy.deepcopy(rules)
    for key, value in changes.items():
        name, _, metric = key.partition(".")
        if name not in rules:
            near = difflib.get_close_matches(name, rules, 1, 0.5)
            hint = f"did you mean {near[0]}?" if near else f"there are {', '.join(rules)}"
            raise RestoreError(f"rules.{key}: no rule {name!r}; {hint}")
        if not metric:
            if not isinstance(value, bool):
                raise RestoreError(f"rules.{key}: expected true or false; a limit is changed by rules.{name}.METRIC")
            rules[name]["action"] = "reject" if value else "off"
            continue
        matching = [c for c in conditions(rules[name]) if c["metric"] == metric and ("below" in c or "above" in c)]
        if not matching or isinstance(value, bool) or value is None:
            limits = [c["metric"] for c in conditions(rules[name]) if "below" in c or "above" in c]
            raise RestoreError(f"rules.{key}: expected a number for one of {', '.join(limits) or '(no limits)'}")
        for condition in matching:
            condition["below" if "below" in condition else "above"] = float(value)
    return rules


def conditions(rule):
    """The list of a rule's conditions."""
    found = rule.get("any", rule.get("all"))
    if not isinstance(found, list) or not found:
        raise RestoreError(f"a rule needs a list of conditions, not {found!r}")
    return found


def describe(condition):
    """A condition as people write it: ``sharpness < 0.92``."""
    for key, sign in (("below", "<"), ("above", ">"), ("is", "is"), ("one_of", "in")):
        if key in condition:
            value = condition[key]
            value = ", ".join(value) if key == "one_of" else f"{value:g}" if isinstance(value, float) else value
            return f"{condition['metric']} {sign} {value}"


def decide(store, recipe):
    """Write the decision for every image; returns ``(rows, kept)``."""
    rules = thresholds(recipe.thresholds, recipe.rules)
    rows = store.rows("scan")
    known = metric_names(store)
    for name, rule in rules.items():
        for condition in conditions(rule):
            if condition["metric"] not in known and "." in condition["metric"] and rule["action"] != "off":
                raise RestoreError(f"thresholds: {name}: no column {condition['metric']!r} was measured")
    store.begin("decide")
    kept = count = 0
    needed = [c["metric"] for rule in rules.values() for c in conditions(rule)]
    chosen = chosen_copies(store, rules, needed)
    with atomic_path(store.path("decide", "decision.parquet")) as temporary, \
            pq.ParquetWriter(temporary, DECISION_SCHEMA, compression="zstd") as writer:
        for table in metric_tables(store, needed, chosen):
            decided = decide_table(table, rules)
            writer.write_table(decided)
            kept += pc.sum(decided["keep"]).as_py() or 0
            count += len(decided)
    if count != rows:
        raise RestoreError(f"{store.folder}: measured {count} images of {rows}. "
                           "Run: python -m data_tools measure RECIPE")
    text = as_yaml(rules)
    write_bytes(store.path("decide", "thresholds.yaml"), text)
    store.finish("decide", ["decision.parquet"], rows, hashlib.sha256(text.encode()).hexdigest()[:12], kept=int(kept))
    return rows, int(kept)


def chosen_copies(store, rules, needed):
    """The copy to keep of each duplicate group, {group: id}: the preferred one of those that no other rule rejects."""
    chosen = {}
    if not store.manifest("join"):
        return chosen
    others = {name: rule for name, rule in rules.items() if all(c["metric"] != "duplicate" for c in conditions(rule))}
    join = store.read("join", ["id", "duplicate_group", "place"])
    start = 0
    for table in metric_tables(store, needed):
        part = join.slice(start, len(table))
        start += len(table)
        at = np.flatnonzero(part["duplicate_group"].is_valid().to_numpy(zero_copy_only=False))
        if not len(at):
            continue
        grouped = decide_table(table.take(at), others)["keep"].to_pylist()
        for row, keep in zip(part.take(at).to_pylist(), grouped):
            # a kept copy goes before one that another rule rejects, then the join's order of preference counts
            rank = (not keep, row["place"], row["id"])
            chosen[row["duplicate_group"]] = min(rank, chosen.get(row["duplicate_group"], rank))
    return {group: rank[2] for group, rank in chosen.items()}


def decide_table(table, rules):
    """The decision rows for a table of metrics with a column ``id``."""
    count = len(table)
    fired = {name: fires(table, rule) for name, rule in rules.items() if rule["action"] != "off"}
    rejecting = [name for name in fired if rules[name]["action"] == "reject"]
    flagging = [name for name in fired if rules[name]["action"] == "flag"]
    reject = [[name for name in rejecting if fired[name][k]] for k in range(count)]
    flag = [[name for name in flagging if fired[name][k]] for k in range(count)]
    return pa.table({"id": table["id"], "keep": [not names for names in reject], "rules": reject, "flags": flag,
                     "primary": [names[0] if names else None for names in reject]}, DECISION_SCHEMA)


def fires(table, rule):
    """Boolean array: for which rows of a table of metrics a rule fires."""
    results = [_holds(table, condition) for condition in conditions(rule)]
    return np.any(results, 0) if "any" in rule else np.all(results, 0)


def _holds(table, condition):
    name = condition["metric"]
    if name not in table.column_names:
        return np.zeros(len(table), bool)
    column = table[name]
    if "below" in condition:
        result = pc.less(pc.cast(column, pa.float64()), float(condition["below"]))
    elif "above" in condition:
        result = pc.greater(pc.cast(column, pa.float64()), float(condition["above"]))
    elif "is" in condition:
        result = pc.equal(column, pa.scalar(condition["is"], column.type))
    else:
        result = pc.is_in(column, value_set=pa.array(condition["one_of"], column.type))
    return pc.fill_null(result, False).to_numpy(zero_copy_only=False)


def metric_names(store):
    """Every column that a threshold may name: of the measure table, later passes and the join."""
    names = set(store.columns("measure")) | set(_DERIVED)
    if store.manifest("passes"):
        names |= set(store.columns("passes"))
    return names


def metric_tables(store, columns=None, chosen=None):
    """Yield per measured part one table of ``id`` and metrics: the measure table, later passes (watermark, niqe), and
    ``error`` (its kind), ``duplicate``, ``contaminated`` from the join where that has run. ``columns`` limits them;
    ``chosen`` ({group: id}) says which copy of a duplicate group is no duplicate, by default the join's best."""
    wanted = None if columns is None else set(columns) | {"id"}
    names = store.columns("measure")
    read = names if wanted is None else [n for n in names if n in wanted or n == "error"]
    passes = store.read("passes") if store.manifest("passes") else None
    join = None
    if store.manifest("join"):
        join = store.read("join", ["id", "duplicate_group", "best_in_group", "contaminated_by"])
    start = 0
    for table in store.batches("measure", read):
        stop = start + len(table)
        table = table.set_column(table.column_names.index("error"), "error", error_kind(table["error"]))
        for other in (passes, join):
            if other is None or not len(table):
                continue
            part = other.slice(start, len(table))
            if part["id"].to_pylist() != table["id"].to_pylist():
                raise RestoreError(f"{store.folder}: the tables of two stages do not fit together; run the later "
                                   "stages again (python -m data_tools build RECIPE does)")
            if other is passes:
                for name in part.column_names:
                    if name != "id" and (wanted is None or name in wanted):
                        table = table.append_column(name, part[name])
            else:
                best = part["best_in_group"]
                if chosen:
                    best = pa.array([chosen.get(group) for group in part["duplicate_group"].to_pylist()], pa.string())
                table = table.append_column("duplicate", pc.fill_null(pc.not_equal(best, part["id"]), False))
                table = table.append_column("contaminated", pc.is_valid(part["contaminated_by"]))
        yield table
        start = stop


def error_kind(column):
    """The kinds of a column of errors: what stands before the colon."""
    kinds = pc.list_element(pc.split_pattern(pc.fill_null(column, ""), ":", max_splits=1), 0)
    return pc.if_else(pc.is_valid(column), kinds, column)


def as_yaml(rules):
    """The rules as YAML with one condition a line."""
    lines = []
    for name, rule in rules.items():
        lines += [f"{name}:", f"  action: {json.dumps(rule['action'])}", f"  why: {json.dumps(rule['why'])}",
                  f"  {'any' if 'any' in rule else 'all'}:"]
        lines += [f"    - {json.dumps(condition)}" for condition in conditions(rule)]
    return "\n".join(lines) + "\n"
