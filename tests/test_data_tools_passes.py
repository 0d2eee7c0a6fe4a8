"""Second passes through the whole stage: a source with a mark, one without, and NIQE of what the other rules keep."""

import cv2
import numpy as np
import pytest
from test_data_tools_measure import natural

from data_tools import decide, measuring, niqe, passes, recipe, scan
from data_tools.store import Store


@pytest.fixture(scope="module")
def work(tmp_path_factory):
    folder = tmp_path_factory.mktemp("passes")
    for name in ("stock", "own"):
        (folder / name).mkdir()
        for k in range(18):
            pixels = natural(k + 40 * (name == "own"), 270, 360).astype(np.float32)
            mark = np.zeros(pixels.shape[:2], np.uint8)
            if name == "stock":
                cv2.putText(mark, "stock", (100, 145), 2, 1.6, 255, 2, cv2.LINE_AA)
            pixels += (255 - pixels) * 0.4 * (mark / 255)[:, :, None]
            cv2.imwrite(str(folder / name / f"{k:02d}.jpg"), pixels.astype(np.uint8), [1, 95])
    niqe.save(folder / "model.npz", niqe.fit([cv2.cvtColor(natural(k), cv2.COLOR_BGR2GRAY) for k in range(32)]))
    sources = [recipe.Source(str(folder / name), name) for name in ("stock", "own")]
    made = recipe.Recipe(sources, workers=1, rules={"drawing": False})
    made.measure.niqe = str(folder / "model.npz")
    store = Store(folder / "work")
    scan.scan(store, made)
    measuring.run(store, made)
    said = passes.run(store, made)
    return store, made, said


def test_the_marked_source_is_found_and_rejected(work):
    store, made, said = work
    assert "stock (" in said and "own" not in said
    decide.decide(store, made)
    marked = ["watermark" in rules for rules in store.read("decide")["rules"].to_pylist()]
    assert sum(marked[:18]) >= 0.8 * 18 and not any(marked[18:])
    assert passes.run(store, made) == "nothing new"


def test_niqe_is_measured_where_the_other_rules_keep(work):
    store, made, _ = work
    scores = store.read("passes")["niqe"].to_pylist()
    kept = [row for table in decide.metric_tables(store) for row in decide.decide_table(
        table.drop_columns(["watermark", "watermark_source"]), decide.thresholds(None, made.rules))["keep"].to_pylist()]
    assert [score is not None for score in scores] == kept and any(kept)
