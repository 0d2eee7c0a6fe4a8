"""Thresholds as data: every rule that fires is recorded, nulls fire nothing, mistakes are named."""

import pyarrow as pa
import pytest

from data_tools import decide
from data_tools.measure import schema
from data_tools.store import JOIN_SCHEMA, SCAN_SCHEMA, Store
from restore.errors import RestoreError

RULES = """
soft:
  any: [{metric: sharpness, below: 0.9}, {metric: sharpness_2, below: 1.0}]
white:
  why: an object on white
  all: [{metric: white_ring, above: 0.8}, {metric: object_share, below: 0.7}]
lied: {action: flag, any: [{metric: misnamed, is: true}]}
broken: {any: [{metric: error, one_of: [corrupt, empty]}]}
unused: {action: off, any: [{metric: noise, above: 0}]}
again: {any: [{metric: duplicate, is: true}]}
"""


@pytest.fixture
def rules(tmp_path):
    (tmp_path / "rules.yaml").write_text(RULES)
    return decide.thresholds(tmp_path / "rules.yaml")


def table(*rows):
    made = pa.Table.from_pylist([{"id": str(k), **row} for k, row in enumerate(rows)], schema())
    return made.set_column(made.column_names.index("error"), "error", decide.error_kind(made["error"]))


def test_all_rules_are_recorded_and_nulls_fire_nothing(rules):
    decided = decide.decide_table(table(
        {"sharpness": 1.2, "sharpness_2": 1.3, "white_ring": 0.1, "object_share": 1.0, "misnamed": True, "noise": 9},
        {"sharpness": 0.5, "sharpness_2": 1.3, "white_ring": 0.9, "object_share": 0.5},
        {"sharpness_2": 0.99, "white_ring": 0.9, "object_share": 0.9},
        {"error": "corrupt: bad: marker"},
        {"error": "bomb: large"},
    ), rules).to_pylist()
    assert [row["rules"] for row in decided] == [[], ["soft", "white"], ["soft"], ["broken"], []]
    assert [row["flags"] for row in decided] == [["lied"], [], [], [], []]
    assert [row["keep"] for row in decided] == [True, False, False, False, True]
    assert [row["primary"] for row in decided] == [None, "soft", "soft", "broken", None]


def test_changes_of_single_thresholds(tmp_path):
    (tmp_path / "rules.yaml").write_text(RULES)
    changed = decide.thresholds(tmp_path / "rules.yaml", {"soft.sharpness": 0.4, "white": False, "lied": True})
    row = {"sharpness": 0.5, "sharpness_2": 2, "white_ring": 1, "object_share": 0, "misnamed": True}
    assert decide.decide_table(table(row), changed).to_pylist()[0]["rules"] == ["lied"]


@pytest.mark.parametrize("text, said", [
    ("a: {any: [{metric: sharpnes, below: 1}]}", "did you mean sharpness"),
    ("a: {any: [{metric: noise, under: 1}]}", "a condition is"),
    ("a: {any: [{metric: noise, below: high}]}", "expected a number"),
    ("a: {any: [{metric: noise, below: 1}], all: []}", "any` or under `all"),
    ("a: {action: refuse, any: [{metric: noise, below: 1}]}", "none of reject, flag, off"),
    ("a: {any: [{metric: noise, below: 1}], wy: x}", "unknown key 'wy'"),
    ("a: [", "not YAML"),
])
def test_mistakes_in_a_thresholds_file_are_named(tmp_path, text, said):
    (tmp_path / "rules.yaml").write_text(text)
    with pytest.raises(RestoreError, match=said):
        decide.thresholds(tmp_path / "rules.yaml")


@pytest.mark.parametrize("changes, said", [({"blury": False}, "did you mean blurry"),
                                           ({"blurry.noise": 3}, "sharpness"),
                                           ({"blurry": 0.4}, "expected true or false")])
def test_mistakes_in_a_recipes_rules_are_named(changes, said):
    with pytest.raises(RestoreError, match=said):
        decide.thresholds(None, changes)


def test_the_shipped_thresholds_read_and_write_back(tmp_path):
    shipped = decide.thresholds()
    (tmp_path / "again.yaml").write_text(decide.as_yaml(shipped))
    assert decide.thresholds(tmp_path / "again.yaml") == shipped


def test_the_kept_copy_is_the_best_that_passes(tmp_path):
    from data_tools.recipe import Recipe, Source
    (tmp_path / "rules.yaml").write_text(RULES)
    store = Store(tmp_path / "work")
    ids = ["a", "b", "c", "d"]
    store.write_part("scan", "part-00000.parquet", pa.Table.from_pylist([{"id": i} for i in ids], SCAN_SCHEMA))
    store.finish("scan", ["part-00000.parquet"], 4)
    store.write_part("measure", "part-00000-x.parquet", pa.Table.from_pylist(
        [{"id": i, "sharpness": s, "sharpness_2": 2} for i, s in zip(ids, (0.5, 1.5, 1.4, 1.3))], schema()))
    store.finish("measure", ["part-00000-x.parquet"], 4)
    join = [{"id": i, "duplicate_group": "a", "best_in_group": "a", "place": k} for k, i in enumerate("abc")]
    join.append({"id": "d"})
    store.write_part("join", "join.parquet", pa.Table.from_pylist(join, JOIN_SCHEMA))
    store.finish("join", ["join.parquet"], 4)
    recipe = Recipe([Source("x", "x")], thresholds=str(tmp_path / "rules.yaml"))
    assert decide.decide(store, recipe) == (4, 2)
    decided = {row["id"]: row["rules"] for row in store.read("decide").to_pylist()}
    # the join prefers a, which is blurred: b is the copy to keep
    assert decided == {"a": ["soft", "again"], "b": [], "c": ["again"], "d": []}
