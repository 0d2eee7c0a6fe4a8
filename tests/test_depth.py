"""Costs against torch's own counter and against the published figures."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from restore import RestoreError, create_model
from restore.depth import count_macs, count_parameters, format_depth, macs_of_sizes, parse_depth

from test_models import TINY


@pytest.mark.parametrize("depth", ["small", "large", "1,1,1,1"])
def test_macs_equal_torchs_flop_counter(depth):
    model = create_model("dynet", **TINY["dynet"]).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, 64, 48), depth)
    # The sum of prompt components is a product of a vector and a matrix, which some torch versions do not count.
    prompts = sum(p.numel() for key, p in model.named_parameters() if key.endswith("components"))
    assert counter.get_total_flops() / 2 == pytest.approx(count_macs(model, 64, 48, depth), abs=prompts)


@pytest.mark.parametrize("name", ["promptir", "gunet_t", "gunet_b"])
def test_macs_of_fixed_networks_equal_torchs_flop_counter(name):
    model = create_model(name, **TINY[name]).eval()
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(torch.rand(1, 3, 64, 48))
    prompts = sum(p.numel() for key, p in model.named_parameters() if key.endswith("components"))
    assert counter.get_total_flops() / 2 == pytest.approx(count_macs(model, 64, 48), abs=prompts)


@pytest.mark.parametrize("name, depth, size, gmacs", [
    ("dynet", "large", 224, 132.2), ("dynet", "small", 224, 90.8), ("promptir", None, 224, 132.2),
    ("dynet", (1, 1, 1, 1), 256, 64.5 + 11.25 + 4.15 + 3.88 + 1.88),
    ("gunet_t", None, 256, 2.76), ("gunet_s", None, 256, 4.865), ("gunet_b", None, 256, 9.08), ("gunet_d", None, 256, 17.51)])
def test_macs_equal_the_published_figures(name, depth, size, gmacs):
    with torch.device("meta"):
        model = create_model(name)
    assert count_macs(model, size, size, depth) / 1e9 == pytest.approx(gmacs, rel=1e-3)


@pytest.mark.parametrize("name, millions", [
    ("dynet", 16.613), ("promptir", 35.377), ("gunet_t", 0.845), ("gunet_s", 1.477), ("gunet_b", 2.741), ("gunet_d", 5.270)])
def test_parameters_equal_the_published_figures_less_what_is_unused(name, millions):
    with torch.device("meta"):
        assert count_parameters(create_model(name)) / 1e6 == pytest.approx(millions, abs=6e-4)


def test_counting_leaves_the_model_alone():
    model = create_model("dynet", **TINY["dynet"])
    weight = model.embed.weight
    count_macs(model, 6000, 4000)
    assert model.embed.weight is weight and weight.device.type == "cpu" and model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_text_of_depths():
    assert parse_depth("2,3,3,4") == (2, 3, 3, 4) == parse_depth("(2, 3, 3, 4)")
    assert parse_depth("small") == "small" and parse_depth(None) is None and parse_depth([1, 2]) == (1, 2)
    assert format_depth((2, 3)) == "2,3" and parse_depth(format_depth((2, 3))) == (2, 3)
    with pytest.raises(RestoreError, match="2,3,,4"):
        parse_depth("2,3,,4")


@pytest.mark.parametrize("name", ["dynet", "promptir", "gunet_t", "anydepth"])
def test_the_line_through_small_sizes_is_the_count_of_every_size(name):
    model = create_model(name, **TINY[name])
    for depth in [None, *model.depths]:
        counted = macs_of_sizes(model, depth)
        for size in ((1, 1), (33, 100), (250, 64), (4000, 6000)):
            assert counted(*size) == count_macs(model, *size, depth)
