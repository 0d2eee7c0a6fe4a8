"""Near duplicates: exactness against brute force, groups, preference, behaviour on degenerate sets."""

import time

import cv2
import numpy as np
import pyarrow as pa
import pytest
from work_folder import measured, photo, write

from data_tools import duplicates, join, phash
from data_tools.measure import schema


def planted(count, seed, flips=40, share=0.3):
    """Random hashes, a share of them copies of others with 0 to ``flips`` bits changed."""
    rng = np.random.default_rng(seed)
    hashes = rng.integers(0, 256, (count, 32), dtype=np.uint8)
    for row in rng.choice(count, int(count * share), replace=False):
        bits = np.unpackbits(hashes[rng.integers(count)])
        bits[rng.choice(256, rng.integers(flips + 1), replace=False)] ^= 1
        hashes[row] = np.packbits(bits)
    return hashes


@pytest.mark.parametrize(("distance", "turned"), [(0, False), (15, False), (16, False), (31, False), (31, True), (40, False)])
def test_equals_brute_force(monkeypatch, distance, turned):
    monkeypatch.setattr(duplicates, "_BLOCK", 32)         # so that the index does nearly all of the work
    monkeypatch.setattr(duplicates, "_CHUNK", 1000)
    hashes = planted(700, distance)
    for ours, slow in zip(duplicates.group(hashes, distance, turned), duplicates.brute_force(hashes, distance, turned)):
        assert np.array_equal(ours, slow)


def test_distance_is_inclusive():
    first = np.random.default_rng(3).integers(0, 256, 32, dtype=np.uint8)
    bits = np.unpackbits(first)
    rows = [first]
    for flips in (31, 32):
        changed = bits.copy()
        changed[np.arange(flips) * 8] ^= 1                # spread over all substrings
        rows.append(np.packbits(changed))
    best, differing, _ = duplicates.group(np.stack(rows), 31)
    assert best.tolist() == [0, 0, 2]
    assert differing.tolist() == [0, 31, 0]


def test_no_chains():
    """a is near b, b near c ... : every member is near the image that is kept in its stead."""
    bits = np.zeros((40, 256), np.uint8)
    for row in range(1, 40):
        bits[row] = bits[row - 1]
        bits[row, row * 6 % 256:row * 6 % 256 + 6] ^= 1
    hashes = np.packbits(bits, axis=1)
    best, differing, _ = duplicates.group(hashes, 31)
    assert 40 / 11 <= len(set(best)) < 20
    assert (differing <= 31).all()
    assert np.array_equal(phash.distance(hashes, hashes[best]), differing)


def test_degenerate_sets_stay_cheap(monkeypatch):
    """Thousands of copies of one image, and a ball of near copies: neither quadratic work nor one group of everything."""
    monkeypatch.setattr(duplicates, "_BLOCK", 256)
    rng = np.random.default_rng(0)
    ball = np.repeat(rng.integers(0, 2, (1, 256), dtype=np.uint8), 6000, axis=0)
    for row in ball[3000:]:
        row[rng.choice(256, 8, replace=False)] ^= 1
    hashes = np.concatenate([np.packbits(ball, axis=1), planted(2000, 1, share=0)])
    started = time.process_time()
    best, _, _ = duplicates.group(hashes, 31)
    assert time.process_time() - started < 10
    assert (best[:6000] == 0).all()
    assert (best[6000:] == np.arange(6000, 8000)).all()


def test_turned_hashes_are_those_of_turned_pictures():
    for seed in range(4):
        truth, quality = phash.pdq_dihedral(cv2.cvtColor(photo(seed), cv2.COLOR_BGR2GRAY))
        assert quality >= 50
        for version in range(8):
            assert phash.distance(duplicates.turned_hashes(truth[:1], version)[0], truth[version]) <= 24


def table(**columns):
    rows = len(columns["id"])
    made = {name: columns.get(name, [None] * rows) for name in schema().names}
    return pa.table(made, schema())


def test_preference():
    """Larger first, then JPEG quality, colour, sharpness, noise, id; whatever the order of the rows."""
    one = bytes(range(32))
    rows = {"id": ["f" * 16, "e" * 16, "d" * 16, "c" * 16, "b" * 16, "a" * 16], "phash": [one] * 6, "phash_quality": [100] * 6,
                "sha256": [bytes([k] * 32) for k in range(6)], "width": [100, 200, 200, 200, 200, 200], "height": [100] * 6,
                "jpeg_quality": [99, 60, 90, 90, 90, 90], "gray": [False, False, True, False, False, False],
                "sharpness": [1.5, 1.5, 1.5, 1.5, 1.1, 1.5], "noise": [0, 0, 0, 0.2, 0, 0.9]}
    for order in ([0, 1, 2, 3, 4, 5], [5, 3, 1, 0, 2, 4]):
        best, place, how = join.group(table(**{k: [v[i] for i in order] for k, v in rows.items()}))
        assert [order[row] for row in np.argsort(place)] == [3, 5, 4, 2, 1, 0]
        assert {order[row] for row in best} == {3}
        assert sorted(how[:, 0].tolist()) == [-1, 0, 0, 0, 0, 0]


def test_plain_pictures_and_errors_are_not_compared():
    one = bytes(32)
    rows = {"id": [f"{k:016x}" for k in range(5)], "phash": [one] * 5, "phash_quality": [10, 10, 100, 100, 10], "width": [9] * 5,
                "height": [9] * 5, "sha256": [b"a" * 32, b"b" * 32, b"c" * 32, b"d" * 32, b"a" * 32],
                "error": [None, None, None, "corrupt: x", None]}
    best, place, how = join.group(table(**rows))
    assert best.tolist() == [0, -1, -1, -1, 0]            # the same bytes are, a hash of low quality or of a damaged file is not
    assert place.tolist() == [0, -1, -1, -1, 1]
    assert how[4].tolist() == [0, -1]


def test_join_of_files(tmp_path):
    source = tmp_path / "photos"
    for seed in range(6):
        write(source / f"{seed}.jpg", photo(seed))
    image = photo(0)
    write(source / "small.jpg", cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA))
    write(source / "mirrored.png", image[:, ::-1])
    write(source / "worse.jpg", image, 40)
    (source / "copy.jpg").write_bytes((source / "1.jpg").read_bytes())
    store, recipe = measured([source], tmp_path / "work")
    said = join.join(store, recipe)
    rows = dict(zip(store.read("scan")["name"].to_pylist(), store.read("join").to_pylist()))
    groups = {}
    for name, row in rows.items():
        groups.setdefault(row["best_in_group"], set()).add(name)
    assert {"0.jpg", "small.jpg", "mirrored.png", "worse.jpg"} in groups.values()
    assert {"1.jpg", "copy.jpg"} in groups.values()
    assert groups[None] == {"2.jpg", "3.jpg", "4.jpg", "5.jpg"}
    assert rows["small.jpg"]["place"] == 3
    assert "same bytes" in (rows["copy.jpg"]["reason"] or rows["1.jpg"]["reason"])
    assert said.startswith("1 exact and 3 near duplicates in 2 groups")
    before = store.path("join", "join.parquet").read_bytes()
    store.begin("join")
    join.join(store, recipe)
    assert store.path("join", "join.parquet").read_bytes() == before


@pytest.mark.slow
def test_two_hundred_thousand():
    """The figure of the README, with planted duplicates all found."""
    count = 200_000
    hashes = planted(count, 5, flips=31, share=0.05)
    started = time.process_time()
    best, differing, _ = duplicates.group(hashes, 31)
    seconds = time.process_time() - started
    sample = np.flatnonzero(best != np.arange(count))[:500]
    assert (phash.distance(hashes[sample], hashes[best[sample]]) == differing[sample]).all()
    alone = np.flatnonzero(best == np.arange(count))
    for row in alone[::2000]:                             # a best image has no better one within the distance
        near = np.flatnonzero(phash.distance(hashes[row], hashes) <= 31)
        assert not set(near[near < row]) & set(alone)
    assert seconds < 120
