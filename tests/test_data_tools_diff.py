"""Two decisions: what changed sides, by which rules, and which limits differ."""

import shutil

import pytest
from work_folder import RULES, measured, photo, write

from data_tools.decide import decide
from data_tools.diff import diff
from restore.errors import RestoreError


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("diff")
    for seed in range(4):
        write(root / "web" / f"{seed}.png", photo(seed, 300, 300 + 60 * seed))
    store, recipe = measured([root / "web"], root / "a")
    decide(store, recipe)
    shutil.copytree(root / "a", root / "b")
    rules = RULES.replace("short_side, below: 200", "aspect, below: 1.1").replace("small: {", "small: {action: reject, ")
    (root / "b" / "rules.yaml").write_text(rules + "wide: {any: [{metric: aspect, above: 1.5}]}\n")
    recipe.thresholds = str(root / "b" / "rules.yaml")
    decide(type(store)(root / "b"), recipe)
    return root


def test_text(folders):
    said = diff(folders / "a", folders / "b")
    lines = said.splitlines()
    assert lines[0].endswith("4 of 4 kept")
    assert lines[1].endswith("2 of 4 kept")
    assert "  small: short_side < 200 -> aspect < 1.1" in lines
    assert "  wide: only in b" in lines
    at = lines.index("kept by a, rejected by b: 2")
    assert lines[at + 1] == "  rules: small 1, wide 1"
    assert lines[at + 2:at + 4] == ["  web/0.png  (small)", "  web/3.png  (wide)"]
    assert "rejected by a, kept by b: 0" in lines
    back = diff(folders / "b", folders / "a").splitlines()
    assert "rejected by a, kept by b: 2" in back
    assert "  wide: only in a" in back


def test_same(folders):
    said = diff(folders / "a", folders / "a")
    assert "the limits are the same" in said
    assert "kept by a, rejected by b: 0" in said


def test_other_images(folders, tmp_path):
    """Folders that hold different images are compared on those that both have."""
    for seed in (1, 2, 9):
        write(tmp_path / "web" / f"{seed}.png", photo(seed, 300, 300 + 60 * seed))
    store, recipe = measured([tmp_path / "web"], tmp_path / "c")
    decide(store, recipe)
    lines = diff(folders / "b", tmp_path / "c").splitlines()
    assert "only in a: 2" in lines
    assert "only in b: 1" in lines
    assert "  web/9.png" in lines
    assert "rejected by a, kept by b: 0" in lines


def test_page(folders, tmp_path):
    diff(folders / "a", folders / "b", tmp_path / "diff.html")
    text = (tmp_path / "diff.html").read_text()
    assert text.count("data:image/jpeg") == 2
    assert "short_side &lt; 200 -&gt; aspect &lt; 1.1" in text


def test_unfinished_folders_are_named(folders, tmp_path):
    with pytest.raises(RestoreError, match="no such work folder"):
        diff(folders / "a", tmp_path / "nothing")
    (tmp_path / "empty").mkdir()
    with pytest.raises(RestoreError, match="decide"):
        diff(tmp_path / "empty", folders / "a")
