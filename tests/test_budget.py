"""Depths for a budget: what the checkpoint's numbers, the arithmetic and the measured times say."""

import json

import pytest
import torch

from restore import RestoreError, Restorer, budget, create_model
from restore.depth import count_macs

SIZE = (40, 64)
PSNR = {"shallow": {"mean": 28.0}, "small": {"mean": 30.0}, "large": {"mean": 29.0}}      # the deepest is not the best


@pytest.fixture
def restorer(tmp_path, monkeypatch):
    monkeypatch.setenv("ANYDEPTH_CACHE", str(tmp_path))
    torch.manual_seed(0)
    model = create_model("dynet", width=8, refinement=1, prompt_sizes=(8, 8, 4), default_depth="small",
                         depths={"shallow": [1, 1, 1, 1], "small": [1, 2, 1, 2], "large": [2, 3, 2, 3]})
    model.provenance = {"psnr": PSNR}
    return Restorer(model, device="cpu")


@pytest.mark.parametrize("text, kind, limit", [("200ms", "seconds", 0.2), ("1.5 s", "seconds", 1.5), ("2min", "seconds", 120),
                                               ("20gmacs", "macs", 20e9), ("20 GMACs", "macs", 20e9), ("1GB", "bytes", 1e9)])
def test_parses_budgets(text, kind, limit):
    parsed = budget.parse_budget(text)
    assert (parsed.kind, parsed.limit) == (kind, pytest.approx(limit))


@pytest.mark.parametrize("text", ["", "fast", "0ms", "12", "-3s", "3 parsecs"])
def test_refuses_what_is_no_budget(text):
    with pytest.raises(RestoreError, match="200ms"):
        budget.parse_budget(text)


def test_best_depth_that_fits(restorer):
    macs = {name: count_macs(restorer.model, *SIZE, name) for name in PSNR}
    assert budget.choose_depth(restorer, f"{macs['large'] / 1e6 + 1}mmacs", *SIZE) == "small"     # by validation, not by size
    assert budget.choose_depth(restorer, f"{macs['small'] / 1e6 - 1}mmacs", *SIZE) == "shallow"
    with pytest.raises(RestoreError, match="cheapest, shallow"):
        budget.choose_depth(restorer, f"{macs['shallow'] / 1e6 - 1}mmacs", *SIZE)
    restorer.model.provenance = {}
    assert budget.choose_depth(restorer, f"{macs['large'] / 1e6 + 1}mmacs", *SIZE) == "large"     # without numbers, the deepest


def test_time_is_measured_once_and_kept(restorer, tmp_path, monkeypatch):
    first = budget.measured_seconds(restorer)
    kept = json.loads((tmp_path / "seconds.json").read_text())
    assert list(kept.values()) == [first] and first > 0
    monkeypatch.setattr(type(restorer), "restore", None)              # a second measurement would fail
    assert budget.measured_seconds(restorer) == first
    assert budget.seconds(restorer, 512, 256) == pytest.approx(2 * first, rel=0.05)


def test_damaged_cache_is_only_a_cache(restorer, tmp_path):
    (tmp_path / "seconds.json").write_text("{ broken")
    assert budget.measured_seconds(restorer) > 0


def test_time_budget_follows_the_times(restorer, monkeypatch):
    times = {(1, 1, 1, 1): 0.1, (1, 2, 1, 2): 0.2, (2, 3, 2, 3): 0.4}
    monkeypatch.setattr(budget, "measured_seconds", lambda r: times[r.depth])
    for limit, best in (("500ms", "small"), ("150ms", "shallow")):
        assert budget.choose_depth(restorer, limit, 256, 256) == best
    with pytest.raises(RestoreError, match="100 ms"):
        budget.choose_depth(restorer, "50ms", 256, 256)


def test_restorer_takes_a_budget(restorer):
    model, x = restorer.model, torch.rand(3, *SIZE)
    limit = f"{count_macs(model, *SIZE, 'shallow') / 1e6 + 1}mmacs"
    auto = Restorer(model, depth="auto", budget=limit, device="cpu")
    assert torch.equal(auto.restore(x), Restorer(model, depth="shallow", device="cpu").restore(x))
    for wrong in ({"depth": "auto"}, {"depth": "small", "budget": "1s"}):
        with pytest.raises(RestoreError, match="go together"):
            Restorer(model, **wrong)


def test_network_of_one_depth_has_no_choice():
    with pytest.raises(RestoreError, match="one fixed depth"):
        budget.choose_depth(Restorer(create_model("gunet_t", width=8), device="cpu"), "1s", *SIZE)
