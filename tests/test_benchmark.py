"""restore.benchmark: inputs and scores against an independent scorer, sets in any state, the cache, statistics and tables."""

import dataclasses
import importlib.util
import json
import multiprocessing
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from benchmark_sets import FUNCTION, SUITE, picture, run_suite, save, write_data
from skimage.metrics import structural_similarity

from restore.benchmark import cache, catalog, competitors, inputs, locate, protocol, run, statistics, summary, tables
from restore.errors import RestoreError

SHARED = Path(__file__).resolve().parents[2] / "shared"
needs_shared = pytest.mark.skipif(not (SHARED / "score.py").is_file(), reason="the shared benchmark images are not beside "
                                                                              "this checkout")


@pytest.fixture
def data(tmp_path):
    return write_data(tmp_path)


# -- inputs and scores ---------------------------------------------------------------------------------------------

# Of the pictures above, by a separate script that knows the seeded protocol: sigma -> crc32 of all inputs, mean scores
REFERENCE = {15: ("070578f8", 24.867509701800532, 0.7645793865587086, 29.66361584277824),
             25: ("2ad0a5c8", 20.65241122045136, 0.5809093161084068, 25.46853182813113)}


def test_seeded_inputs_and_scores_are_the_reference(data):
    results = run_suite(data)
    made = summary.summarise(results, {})
    for sigma, (crc, *scores) in REFERENCE.items():
        entry = next(e for e in made["entries"] if e["key"] == f"mini-{sigma}")
        assert (entry["inputs_crc32"], entry["label"]) == (crc, "complete")
        got = made["models"][0]["entries"][f"mini-{sigma}"]
        assert [got[m]["mean"] for m in ("psnr", "ssim", "psnr_y")] == pytest.approx(scores, abs=1e-12)


def test_one_input_by_the_rule_as_written(data):
    suite = catalog.load_suite(data / "suite.yaml")
    entry = suite.entries[1]
    image = next(inputs.inputs([entry], locate.locate(entry.set, [data / "data"]), suite.protocol))[1]
    clean = picture(0)[1:49, 1:65]                                   # 50x67 cut around the centre to 48x64
    rng = np.random.default_rng(zlib.crc32(b"alpha:25"))
    noisy = np.clip(clean.astype(float) + rng.standard_normal(clean.shape) * 25.0, 0, 255).astype(np.uint8)
    assert image.name == "alpha" and np.array_equal(image.clean, clean) and np.array_equal(image.degraded, noisy)


def test_lineage_noise_is_one_sequence_over_the_set_in_order_of_name(data):
    suite = catalog.load_suite(data / "suite.yaml", "lineage")
    entry = suite.entries[1]
    made = [image for of, image in inputs.inputs(suite.entries[:2], locate.locate(entry.set, [data / "data"]), suite.protocol)
            if of == entry]                                       # the other noise level, read along, does not shift it
    np.random.seed(0)                                                # the rule of the released scripts
    for image in made:
        noise = np.random.randn(*image.clean.shape)
        assert np.array_equal(image.degraded, np.clip(image.clean + noise * 25, 0, 255).astype(np.uint8))
    assert [image.name for image in made] == ["alpha", "beta", "gamma"]


def shared_scorer():
    spec = importlib.util.spec_from_file_location("shared_score", SHARED / "score.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


SHARED_SETS = [("cbsd68", "denoise", 25.0), ("urban100", "denoise", 15.0), ("rain100l", "derain", None),
               ("rain100h", "derain", None), ("sots-indoor", "dehaze", None), ("reside-outdoor", "dehaze", None),
               ("polyu", "denoise_real", None)]


def compare_with_shared_scorer(key, task, sigma, first):
    scorer = shared_scorer()
    suite = catalog.load_suite(key, "seeded")
    suite = dataclasses.replace(suite, entries=tuple(e for e in suite.entries if e.sigma == sigma))
    entry = suite.entries[0]
    located = locate.locate(entry.set, [SHARED / "data" / "bench"])
    results = run.run(suite, {entry.key: located}, competitors.competitors(["median"], [], [], "cpu", True),
                      cache.Cache(None), first, crops=0)
    rows, crc = {row["image"]: row for row in results.rows}, 0
    for name, degraded, clean in scorer.inputs(str(located.folder), task, sigma, first):
        crc = scorer.checksum(degraded, clean, crc)
        expected = scorer.score(cv2.medianBlur(degraded, 3), clean)
        assert {m: rows[name][m] for m in expected} == expected          # to the last digit
    assert results.entries[0].crc == f"{crc:08x}" and len(rows) == (first or len(located.items))


@needs_shared
@pytest.mark.parametrize(("key", "task", "sigma"), SHARED_SETS)
def test_agrees_with_the_shared_scorer(key, task, sigma):
    compare_with_shared_scorer(key, task, sigma, 1)


@needs_shared
@pytest.mark.slow
@pytest.mark.parametrize(("key", "task", "sigma"), SHARED_SETS)
def test_agrees_with_the_shared_scorer_on_whole_sets(key, task, sigma):
    compare_with_shared_scorer(key, task, sigma, None)


def test_protocol_rounds_cuts_and_takes_the_luma():
    clean = picture(0)
    restored = np.clip(clean / 255.0 + 0.3 / 255, 0, 1)
    luma = catalog.protocols()["luma"]
    assert protocol.score(restored, clean, luma)["psnr"] == 100.0          # 0.3 levels are gone after rounding
    seeded = catalog.protocols()["seeded"]
    assert protocol.score(restored, clean, seeded)["psnr"] < 70
    noisy = clean.copy()
    noisy[:4] = 255 - noisy[:4]
    border = dataclasses.replace(seeded, border=4)
    assert protocol.score(noisy, clean, border)["psnr"] == 100.0
    expected = structural_similarity(clean / 255.0, noisy / 255.0, data_range=1.0, channel_axis=-1)
    assert protocol.score(noisy, clean, seeded)["ssim"] == expected
    with pytest.raises(ValueError, match="50x66 and the clean one 50x67"):
        protocol.score(noisy[:, 1:], clean, seeded)
    with pytest.raises(ValueError, match="not finite"):
        protocol.score(clean * np.nan, clean, seeded)


# -- suites and sets -----------------------------------------------------------------------------------------------

@pytest.mark.parametrize(("old", "new", "message"), [
    ("set: wet}", "set: wett}", r"entry 2: no set is called 'wett'; did you mean 'wet'\?"),
    ("sigma: [15, 25]", "sigme: [15, 25]", r"entry 1: unknown key 'sigme'; did you mean 'sigma'\?"),
    ("protocol: seeded", "protocol: seded", r"no protocol is called 'seded'; did you mean 'seeded'\?"),
    ("{set: wet}", "{set: wet, sigma: 25}", "entry 2: wet is a set of pairs and takes no sigma"),
    ("sigma: [15, 25]", "sigma: [15, many]", "entry 1: sigma is a number"),
    ("kind: pairs", "kind: pears", "set 'wet': kind is clean, pairs, photos, not 'pears'"),
    ("folders: [wet]", "folder: [wet]", r"set 'wet': unknown key 'folder'; did you mean 'folders'\?"),
    ("entries:", "entries: [", "cannot be read as YAML")])
def test_a_wrong_suite_says_where_and_what(data, old, new, message):
    (data / "suite.yaml").write_text(SUITE.replace(old, new))
    with pytest.raises(RestoreError, match=message) as caught:
        catalog.load_suite(data / "suite.yaml")
    assert "suite.yaml" in str(caught.value)


def test_bundled_suites_are_valid():
    for name in catalog.suite_names():
        assert catalog.load_suite(name).entries
    with pytest.raises(RestoreError, match="did you mean 'denoise'"):
        catalog.load_suite("denoize")
    for row in catalog.published():
        assert row.mark in ("S", "M", "2") and row.protocol in catalog.protocols()
        if "3task" in row.mean and row.values:
            assert row.mean["3task"] == pytest.approx(np.mean(list(row.values.values())), abs=0.0151)


@pytest.mark.parametrize("folders", ["test/derain/Rain100L/input test/derain/Rain100L/target",
                                     "Rain100L/test/rain Rain100L/test/norain", "rain100l/rainy rain100l/clean",
                                     "rain_data_test_Light/rain rain_data_test_Light/norain"])
def test_layouts_of_a_set_are_recognised(tmp_path, folders):
    for folder in folders.split():
        save(tmp_path / folder / "001.png", picture(0))
    found = locate.locate(catalog.image_sets()["rain100l"], [tmp_path])
    assert found.label == "partial, 1 of 100" and found.items[0].clean.parts[-2] in ("target", "norain", "clean")


def test_larger_clean_images_of_the_original_release_are_cut(tmp_path):
    save(tmp_path / "SOTS" / "indoor" / "hazy" / "1400_1.png", picture(0, 64, 80))
    save(tmp_path / "SOTS" / "indoor" / "clear" / "1400.png", np.pad(picture(0, 64, 80), ((10, 10), (10, 10), (0, 0))))
    suite = catalog.load_suite("sots-indoor")
    found = locate.locate(suite.entries[0].set, [tmp_path])
    image = next(inputs.inputs(suite.entries, found, suite.protocol))[1]
    assert image.error == "" and np.array_equal(image.degraded, image.clean)


def test_bad_files_are_named_and_the_rest_goes_on(data):
    mini, wet = data / "data" / "mini", data / "data" / "wet"
    (mini / "beta.png").write_bytes((mini / "beta.png").read_bytes()[:300])                   # cut off
    (mini / "gamma.png").rename(mini / "gama.png")                                            # renamed
    save(mini / "alpha.png", cv2.cvtColor(picture(0), cv2.COLOR_RGB2GRAY))                     # gray
    save(wet / "rainy" / "1.png", picture(1)[:40])                                            # resized
    results = run_suite(data)
    made = {e["key"]: e for e in summary.summarise(results, {})["entries"]}
    assert not results.ok and {row["image"] for row in results.rows} == {"alpha", "gama", "0"}
    assert len(made["mini-15"]["errors"]) == 1 and "beta.png" in made["mini-15"]["errors"][0]
    assert made["mini-15"]["label"] == "partial, 2 of 3" and "gray" in made["mini-15"]["notes"][0]
    assert "40x67" in made["wet"]["errors"][0] and made["wet"]["label"] == "partial, 1 of 2"
    lines = locate.check(locate.locate(results.entries[0].entry.set, [data / "data"]))
    assert any("gama" in line and "renamed" in line for line in lines) and any("alpha.png: gray" in line for line in lines)
    (wet / "clean" / "0.png").unlink()                                                        # missing
    lines = locate.locate(results.entries[2].entry.set, [data / "data"]).problems
    assert any("0.png" in line and "partner" in line for line in lines)


def test_other_pixels_under_the_right_names_are_not_the_published_set(data):
    text = SUITE.replace("names: [alpha, beta, gamma]", "names: [alpha, beta, gamma], crc32: {seeded-15: '070578f8'}")
    (data / "suite.yaml").write_text(text)
    assert run_suite(data, only=["mini-15"]).entries[0].label == "complete"
    save(data / "data" / "mini" / "beta.png", picture(7))
    altered = run_suite(data, only=["mini-15"]).entries[0]
    assert (altered.label, altered.complete) == ("altered", False) and "not the published pixels" in altered.notes[0]


def test_a_bad_file_does_not_shift_the_noise_of_others(data):
    whole = {row["image"]: row["psnr"] for row in run_suite(data, protocol_name="lineage", only=["mini-25"]).rows}
    path = data / "data" / "mini" / "alpha.png"
    path.write_bytes(path.read_bytes()[:300])                                                  # its header is still there
    rest = {row["image"]: row["psnr"] for row in run_suite(data, protocol_name="lineage", only=["mini-25"]).rows}
    assert rest == {name: value for name, value in whole.items() if name != "alpha"}


# -- the run -------------------------------------------------------------------------------------------------------


def test_second_run_comes_from_the_cache_and_is_equal(data):
    (data / "f.py").write_text(FUNCTION)
    first = run_suite(data, [f"{data}/f.py:halve"], kept=data / "kept")
    second = run_suite(data, [f"{data}/f.py:halve"], kept=data / "kept")
    assert first.rows == second.rows and len(first.rows) == 8
    assert second.clock["network_wall"] == 0                                # nothing was called again
    for key, gallery in first.galleries.items():
        again = second.galleries[key]
        for one, two in zip([*gallery.best, *gallery.worst], [*again.best, *again.worst]):
            assert (one.name, one.gain, tuple(one.box)) == (two.name, two.gain, tuple(two.box))
            assert np.array_equal(one.restored, two.restored) and np.array_equal(one.clean, two.clean)
    fresh = run_suite(data, [f"{data}/f.py:halve"])
    assert [{**row, "milliseconds": 0} for row in fresh.rows] == [{**row, "milliseconds": 0} for row in first.rows]


def test_interrupted_run_is_taken_up(data):
    (data / "f.py").write_text(FUNCTION)
    run_suite(data, [f"{data}/f.py:halve"], kept=data / "kept", first=1)
    damaged = next((data / "kept").rglob("*.json"))
    damaged.write_text('{"scores": {')
    whole = run_suite(data, [f"{data}/f.py:halve"], kept=data / "kept")
    expected = run_suite(data, [f"{data}/f.py:halve"])
    assert [row["psnr"] for row in whole.rows] == [row["psnr"] for row in expected.rows]
    gained = [[crop.gain for crop in gallery.best] for gallery in whole.galleries.values()]
    assert gained == [[crop.gain for crop in gallery.best] for gallery in expected.galleries.values()]
    assert all(crop.restored is not None for gallery in whole.galleries.values() for crop in gallery.best)


def test_changed_pixels_weights_or_protocol_are_not_taken_from_the_cache(data):
    first = run_suite(data, kept=data / "kept", only=["wet"])
    save(data / "data" / "wet" / "rainy" / "0.png", picture(5))
    second = run_suite(data, kept=data / "kept", only=["wet"])
    assert first.rows[0]["psnr"] != second.rows[0]["psnr"] and first.rows[1] == second.rows[1]
    luma = run_suite(data, kept=data / "kept", only=["wet"], protocol_name="luma")
    assert luma.rows[1]["psnr"] != first.rows[1]["psnr"]


def _hammer(folder, seed):
    kept = cache.Cache(folder)
    for number in range(40):
        kept.put(f"{number % 5:040d}", {"scores": {"psnr": number % 5}, "padding": "x" * 20_000, "by": seed})


def test_two_processes_write_one_cache(tmp_path):
    context = multiprocessing.get_context("fork")
    writers = [context.Process(target=_hammer, args=(tmp_path, seed)) for seed in (1, 2)]
    for writer in writers:
        writer.start()
    kept, seen = cache.Cache(tmp_path), 0
    while any(writer.is_alive() for writer in writers):
        for number in range(5):
            path = kept._path(f"{number:040d}")
            if path.exists():
                assert json.loads(path.read_bytes())["scores"] == {"psnr": number}             # always whole
                seen += 1
    assert seen and not any(writer.exitcode for writer in writers)
    assert not [p for p in tmp_path.rglob("*") if p.name.startswith(".")]


def test_the_data_folder_is_left_alone(data):
    before = {p: p.stat().st_mtime_ns for p in (data / "data").rglob("*")}
    run_suite(data, ["input", "median"], kept=data / "kept")
    assert {p: p.stat().st_mtime_ns for p in (data / "data").rglob("*")} == before


def test_a_failing_model_does_not_stop_the_others(data):
    (data / "f.py").write_text(FUNCTION)
    results = run_suite(data, [f"{data}/f.py:wrong", f"{data}/f.py:broken", "median"], only=["wet"])
    assert {row["model"] for row in results.rows} == {"median"} and not results.ok
    assert any(line.startswith("wrong on wet 0: the restored image is 47x64 and the clean one 48x64") for line in results.failed)
    assert any(line.startswith("broken on wet 0: KeyError: 'no weights'") for line in results.failed)


# -- statistics and tables -----------------------------------------------------------------------------------------

def test_bootstrap_interval_is_near_the_normal_one():
    values = np.random.default_rng(1).normal(30, 2, 400)
    made = statistics.summarise(values, "a set")
    half = 1.96 * values.std(ddof=1) / 20
    assert made["mean"] == values.mean()
    assert (made["low"], made["high"]) == pytest.approx((values.mean() - half, values.mean() + half), abs=0.03)
    assert made == statistics.summarise(values, "a set")


def test_paired_comparison_counts_and_narrows():
    rng = np.random.default_rng(2)
    first = rng.normal(30, 3, 60)
    second = first - 0.1 + rng.normal(0, 0.05, 60)
    second[:2] = first[:2]
    made = statistics.compare(first, second, "a set")
    assert (made["wins"] + made["losses"], made["ties"]) == (58, 2) and made["wins"] == int((first > second).sum())
    assert 0 < made["low"] < made["difference"] < made["high"] and made["high"] - made["low"] < 0.05
    lower = statistics.compare(first, second, "a set", better="lower")
    assert (lower["wins"], lower["losses"]) == (made["losses"], made["wins"])


def test_charts_hold_their_points_and_read_as_xml():
    from xml.etree import ElementTree

    from restore.benchmark import curves
    points = [curves.Point(3.0, 30.0, "a@small", "a"), curves.Point(9.0, 31.0, "a & b", "a"),
              curves.Point(90.0, 31.5, "else (2)", "p", hollow=True)]
    for drawn, dots in ((curves.quality_against_cost(points, "t < u", "PSNR"), 3),
                        (curves.quality_against_cost(points[:1], "one point", "PSNR"), 1),
                        (curves.scatter([1, 2, 3], [2, 2, 2], ["x", "y", "z"], ("a", "b"), "scatter"), 3)):
        tree = ElementTree.fromstring(drawn)
        circles = tree.findall(".//{*}circle")
        assert len(circles) == dots
        assert all(curves.LEFT <= float(c.get("cx")) <= curves.WIDTH and 0 <= float(c.get("cy")) <= curves.HEIGHT
                   for c in circles)
    heights = [float(c.get("cy")) for c in ElementTree.fromstring(curves.quality_against_cost(points, "", "")).iter() if c.get("cy")]
    assert heights == sorted(heights, reverse=True)             # better is higher up
    assert curves.quality_against_cost([curves.Point(0, 30.0, "no cost")], "", "") == ""


def test_published_numbers_are_compared_only_where_they_may_be(data):
    text = SUITE.replace("wet:", "rain100l:").replace("set: wet", "set: rain100l").replace("seeded", "lineage")
    (data / "suite.yaml").write_text(text)
    complete = summary.summarise(run_suite(data, only=["rain100l"]), {})
    row = next(r for r in complete["published"] if r["model"] == "DyNet-L")["values"]["rain100l"]
    psnr = complete["models"][0]["entries"]["rain100l"]["psnr"]["mean"]
    assert row["differences"] == {"input": pytest.approx(psnr - 38.71)} and row["why_not"] == ""
    other = next(r for r in complete["published"] if r["model"] == "Restormer")["values"]["rain100l"]
    assert (other["differences"], other["why_not"]) == ({}, "protocol luma")
    partial = summary.summarise(run_suite(data, only=["rain100l"], first=1), {})
    row = next(r for r in partial["published"] if r["model"] == "DyNet-L")["values"]["rain100l"]
    assert (row["differences"], row["why_not"]) == ({}, "set partial, 1 of 2")
    for text in (tables.markdown(partial), tables.latex(partial), tables.terminal(partial)):
        assert "partial, 1 of 2" in text
    assert "38.71 (S, n/c)" in tables.markdown(partial) and "39.36 (2)" in tables.markdown(complete)
    assert f"{psnr - 38.71:+.2f} (S)" in tables.markdown(complete)
