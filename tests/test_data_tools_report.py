"""The report: its live counts are the decision's, its page is whole, self-contained and bounded."""

import base64
import json
import re

import numpy as np
import pyarrow as pa
import pytest
from work_folder import measured, photo, write

from data_tools import decide, report, report_data
from data_tools.decide import decide as decide_stage
from data_tools.funnel import funnel
from data_tools.join import join
from data_tools.measure import schema
from data_tools.store import SCAN_SCHEMA, Store


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    root = tmp_path_factory.mktemp("report")
    for seed in range(10):
        write(root / "web" / f"{seed}.jpg", photo(seed)[20:300, 30:])
    write(root / "web" / "tiny.png", photo(60, 120, 120))
    write(root / "web" / "copy.png", photo(4)[20:300, 30:])
    (root / "web" / "broken & co.jpg").write_bytes((root / "web" / "1.jpg").read_bytes()[:5000])
    write(root / "tests" / "7.png", photo(7))
    store, recipe = measured([root / "web"], root / "work", join__benchmarks=[str(root / "tests")])
    join(store, recipe)
    decide_stage(store, recipe)
    return store, recipe


def synthetic(tmp_path, count, seed=0):
    """A work folder of numbers alone: rows without images behind them."""
    rng = np.random.default_rng(seed)
    store = Store(tmp_path)
    ids = [f"{k:016x}" for k in range(count)]
    names = [f"part-{k:05d}.parquet" for k in range(-(-count // 512))]
    scan = pa.Table.from_pylist([{"id": i, "source": f"s{k % 3}", "name": f"{k}.jpg", "locator": f"file::/nowhere/{k}", "bytes": 9,
                                  "group": "g", "provenance": "{}"} for k, i in enumerate(ids)], SCAN_SCHEMA)
    values = {"id": ids, "short_side": rng.integers(100, 4000, count), "megapixels": rng.lognormal(0, 1, count),
              "sharpness": np.where(rng.random(count) < 0.1, np.nan, rng.gamma(4, 0.2, count)), "brightness": rng.uniform(0, 255, count),
              "contrast": rng.uniform(0, 255, count)}
    columns = {name: pa.array(values[name], field.type, from_pandas=True) if name in values else pa.nulls(count, field.type)
               for name, field in zip(schema().names, schema())}
    measure = pa.table(columns, schema())
    for k, name in enumerate(names):
        store.write_part("scan", name, scan.slice(512 * k, 512))
        store.write_part("measure", name, measure.slice(512 * k, 512))
    for stage in ("scan", "measure"):
        store.finish(stage, names, count)
    return store


RULES = """
small: {any: [{metric: short_side, below: 400}, {metric: megapixels, below: 0.3}]}
blurry: {why: not sharp, any: [{metric: sharpness, below: 0.45}]}
bright: {action: flag, all: [{metric: brightness, above: 200}, {metric: contrast, above: 100}]}
dull: {all: [{metric: brightness, above: 100}, {metric: contrast, below: 30}]}
cut: {any: [{metric: error, one_of: [truncated]}]}
"""


def decided(store, recipe, rules=RULES):
    recipe.thresholds = str(store.folder / "rules.yaml")
    (store.folder / "rules.yaml").write_text(rules)
    decide_stage(store, recipe)


def live_truth(live):
    """What the page's script computes, in numpy: fired by rule."""
    fired = {}
    for rule in live["rules"]:
        parts = []
        for part in rule["parts"]:
            if "limit" in part:
                limit = live["limits"][part["limit"]]
                bins = np.frombuffer(base64.b64decode(limit["bins"]), np.uint8)
                parts.append((bins != 255) & (bins <= limit["at"] if limit["below"] else bins > limit["at"]))
            else:
                parts.append(np.frombuffer(base64.b64decode(part["fixed"]), np.uint8) == 1)
        fired[rule["name"]] = np.any(parts, 0) if rule["any"] else np.all(parts, 0)
    return fired


def test_live_counts_are_exact_at_every_position(built, tmp_path):
    recipe = built[1]
    store = synthetic(tmp_path, 1500)
    decided(store, recipe)
    gathered = report_data.gather(store)
    live = json.loads(report_data.live(gathered))
    tables = pa.concat_tables(list(decide.metric_tables(store)))
    for name, fired in live_truth(live).items():
        assert np.array_equal(fired, decide.fires(tables, gathered.rules[name])), name
    for limit in live["limits"]:
        assert limit["edges"] == sorted(limit["edges"])
        for at in range(0, len(limit["edges"]), 13):       # every slider position is a limit that could be written down
            bins = np.frombuffer(base64.b64decode(limit["bins"]), np.uint8)
            condition = {"metric": limit["metric"], "below" if limit["below"] else "above": limit["edges"][at]}
            expected = decide.fires(tables, {"any": [condition]})
            assert np.array_equal((bins != 255) & (bins <= at if limit["below"] else bins > at), expected)


def test_histograms_and_neighbours(built, tmp_path):
    recipe = built[1]
    store = synthetic(tmp_path, 1300)
    decided(store, recipe)
    gathered = report_data.gather(store)
    tables = pa.concat_tables(list(decide.metric_tables(store)))
    reject = {n: decide.fires(tables, r) for n, r in gathered.rules.items() if r["action"] == "reject"}
    for limit in gathered.limits:
        values = tables[limit.metric].cast(pa.float64()).to_numpy(zero_copy_only=False)
        known = np.isfinite(values)
        others = sum((f for n, f in reject.items() if n != limit.rule), np.zeros(len(values), int))
        assert limit.counts.sum() == known.sum()
        assert limit.decisive.sum() == (known & (others == 0)).sum()
        inside = limit.counts[:limit.at + 1].sum() if limit.kind == "below" else limit.counts[limit.at + 1:].sum()
        fires = values < limit.limit if limit.kind == "below" else values > limit.limit
        assert inside == fires.sum()
        for side, chosen in (("fires", fires & known), ("spares", ~fires & known)):
            pool = chosen & (others == 0)
            nearest = sorted(np.abs(values[pool] - limit.limit))[:8]
            assert [abs(value - limit.limit) for _, value in limit.near[side]][:len(nearest)] == pytest.approx(nearest)


def test_many_rows_are_sampled_and_the_page_stays_small(built, tmp_path):
    recipe = built[1]
    store = synthetic(tmp_path, 21_000)
    decided(store, recipe)
    gathered = report_data.gather(store)
    assert gathered.funnel.rows == 21_000
    assert 10_000 <= gathered.sampled <= report_data.SAMPLE
    estimate = live_truth(json.loads(report_data.live(gathered)))["blurry"].mean()
    assert estimate == pytest.approx(gathered.funnel.fired["blurry"] / 21_000, abs=0.01)
    report.write_report(store, recipe)
    assert (store.folder / "report.html").stat().st_size < 1e6
    assert "estimated from" in (store.folder / "report.html").read_text()


def test_page(built):
    store, recipe = built
    said = report.write_report(store, recipe)
    text = (store.folder / "report.html").read_text()
    assert said.startswith(str(store.folder / "report.html"))
    assert "1 images are the same bytes" not in text
    counts = funnel(store)
    assert f"{counts.kept} of {counts.rows} images kept" in text
    for expected in ("small", "a thumbnail", "short_side", "licence of web", "truncated", "Copies of test images", "tests/7.png",
                     "1 groups: 0 images are the same bytes", "1 are near duplicates", "broken &amp; co.jpg"):
        assert expected in text, expected
    assert text.count("data:image/jpeg") > 30
    assert "broken & co" not in text
    assert not re.search(r"(src|href)=[\"']?(https?:|//|file:)", text)
    assert report.write_report(store, recipe) == said
    assert (store.folder / "report.html").read_text() == text


def test_funnel_adds_up(built):
    counts = funnel(built[0])
    assert counts.rows == 13
    assert counts.rows - counts.kept == sum(counts.first.values())
    assert counts.fired["contaminated"] == counts.alone["contaminated"] == 1
    assert counts.fired["duplicate"] == 1
    assert counts.fired["corrupt"] == 1


def test_an_empty_build(built, tmp_path):
    recipe = built[1]
    store = synthetic(tmp_path, 0)
    decided(store, recipe)
    assert "report.html" in report.write_report(store, recipe)
