"""The networks against the published ones, any size, any depth."""

import functools

import pytest
import torch

from restore import RestoreError, create_model
from restore.depth import count_macs
from restore.models import MODELS
from restore.models.anydepth import Loop
from restore.models.base import pad_to_multiple
from restore.published import convert

from golden import THINNED, golden_case, golden_state_dict

# case -> (state dict, depth, three times the spread between other evaluations of the published network)
CASES = {"dynet_s": ("dynet", "small", 2e-5), "dynet_l": ("dynet", "large", 3e-5), "promptir": ("promptir", None, 1.5e-5),
         "gunet_t": ("gunet_t", None, 1.5e-6), "gunet_b": ("gunet_b", None, 3e-6)}
TINY = {"dynet": dict(width=8, refinement=1, prompt_sizes=(8, 8, 4)),
        "promptir": dict(width=8, blocks=(1, 1, 1, 1), refinement=1, prompt_sizes=(8, 8, 4)),
        "gunet_t": dict(width=8), "gunet_s": dict(width=8), "gunet_b": dict(width=4), "gunet_d": dict(width=4),
        "anydepth": dict(width=(8, 8, 16, 16)), "anydepth_untied": dict(width=(8, 8, 16, 16))}


@functools.cache
def published(name):
    return convert(golden_state_dict(name)).eval()


def tiny(name):
    torch.manual_seed(0)
    return create_model(name, **TINY[name]).eval()


@pytest.mark.parametrize("tag", ["a", "b"])
@pytest.mark.parametrize("case", CASES)
def test_output_equals_the_published_network(case, tag):
    weights, depth, tolerance = CASES[case]
    x, expected = golden_case(case, tag)
    with torch.no_grad():
        output = published(weights)(x, depth)
    torch.testing.assert_close(output[THINNED[tag]], expected, atol=tolerance, rtol=0)


@pytest.mark.parametrize("size", [(1, 1), (3, 5), (8, 8), (17, 64), (25, 1)])
@pytest.mark.parametrize("name", MODELS)
def test_any_size(name, size):
    with torch.no_grad():
        output = tiny(name)(torch.rand(1, 3, *size))
    assert output.shape == (1, 3, *size) and output.isfinite().all()


def test_padding_never_changes_what_needs_none():
    model, x = tiny("dynet"), torch.rand(1, 3, 16, 24)
    with torch.no_grad():
        assert torch.equal(model(x), model.restore(x, model.repeats()))


def test_padding_mirrors_then_repeats():
    x = torch.arange(3.0).view(1, 1, 1, 3).expand(1, 1, 2, 3)
    padded = pad_to_multiple(x, 8, 8)
    assert padded.shape == (1, 1, 8, 8)
    assert padded[0, 0, 0].tolist() == [0, 1, 2, 1, 0, 1, 2, 1]
    assert (pad_to_multiple(torch.full((1, 3, 1, 1), 0.3), 8, 24) == 0.3).all()


@pytest.mark.parametrize("name", ["dynet", "anydepth"])
@pytest.mark.parametrize("depth", ["small", "large", (1, 1, 1, 1), (16, 1, 2, 16), "3,4,4,6"])
def test_any_depth_on_one_set_of_weights(name, depth):
    model = tiny(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with torch.no_grad():
        output = model(torch.rand(2, 3, 16, 16), depth)
    assert output.shape == (2, 3, 16, 16) and output.isfinite().all()
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_repeats_really_repeat():
    model, x = tiny("dynet"), torch.rand(1, 3, 16, 16)
    calls = {name: 0 for name in ("encoder1", "encoder2", "encoder3", "latent", "decoder3", "decoder2", "decoder1")}
    for name in calls:
        def count(*_, name=name):
            calls[name] += 1
        getattr(model, name).register_forward_hook(count)
    with torch.no_grad():
        model(x, (1, 2, 3, 4))
    assert calls == dict(encoder1=1, encoder2=2, encoder3=3, latent=4, decoder3=3, decoder2=2, decoder1=1)


@pytest.mark.parametrize("depth", ["medium", (1, 2, 3), (0, 1, 1, 1), (1, 1, 1, 65), "1,2;3", (1.5, 1, 1, 1)])
def test_a_depth_that_cannot_be_is_refused(depth):
    with pytest.raises(RestoreError, match="depth"):
        tiny("dynet")(torch.rand(1, 3, 8, 8), depth)


def test_a_fixed_network_takes_no_depth():
    with pytest.raises(RestoreError, match="fixed"):
        tiny("gunet_t")(torch.rand(1, 3, 24, 24), "large")
    with pytest.raises(RestoreError, match="fixed"):
        tiny("promptir")(torch.rand(1, 3, 24, 24), (1, 1, 1, 1))


def test_unknown_names_and_arguments_are_named():
    with pytest.raises(RestoreError, match="did you mean 'dynet'"):
        create_model("dyent")
    with pytest.raises(RestoreError, match="wdith"):
        create_model("dynet", wdith=16)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 1, 8, 8), (1, 3, 0, 8)])
def test_other_than_rgb_batches_are_refused(shape):
    with pytest.raises(RestoreError, match="n, 3, h, w"):
        tiny("dynet")(torch.zeros(shape))


def test_a_loop_is_its_block_repeated_and_told_where_it_is():
    torch.manual_seed(0)
    loop, x = Loop(8, conditioned=True), torch.rand(1, 8, 6, 6)
    torch.nn.init.normal_(loop.scale)
    y = x
    for t in (1, 2, 3):
        scale = loop.scale[0] + loop.scale[1] * t / 3 + loop.scale[2] / 3
        y = y + scale[None, :, None, None] * loop.conv2(torch.nn.functional.leaky_relu(loop.conv1(loop.norm(y)), 0.1))
    torch.testing.assert_close(loop(x, 3), y)
    assert not torch.allclose(loop(loop(x, 2), 1), y, atol=1e-3)      # two and one more are not three


def test_many_repeats_do_not_run_away():
    torch.manual_seed(0)
    loop, x = Loop(8, conditioned=False), torch.rand(1, 8, 16, 16)
    with torch.no_grad():
        loop.conv2.weight *= 30                     # far beyond what training gives
        once, often = loop(x, 1), loop(x, 64)
    assert often.abs().max() < 64 * 2 * (once - x).abs().max()         # at most in proportion, never by powers


def test_the_context_carries_what_is_far_away():
    model = tiny("anydepth")
    torch.nn.init.normal_(model.context.tell.weight, std=0.1)
    x = torch.rand(1, 3, 16, 512)
    far = x.clone()
    far[..., -16:] = 0
    with torch.no_grad():
        difference = (model(x, "tiny") - model(far, "tiny"))[..., :16]
    assert difference.abs().max() > 1e-5


def test_what_lies_outside_the_loops_of_anydepth_costs_little():
    model = create_model("anydepth")
    cost = {depth: count_macs(model, 256, 256, depth) for depth in ("tiny", "large", (2, 1, 1, 1))}
    c1 = model.config["width"][0]
    assert cost[2, 1, 1, 1] - cost["tiny"] == 2 * 18 * c1 * c1 * 128 * 128       # one more repeat, encoder and decoder
    assert (4 * cost["tiny"] - cost["large"]) / 3 < 0.04 * cost["large"]
    assert cost["tiny"] < 2e9


@pytest.mark.parametrize("name", ["dynet", "promptir", "gunet_t", "anydepth"])
def test_every_weight_takes_part(name):
    model = tiny(name).train()
    if name == "anydepth":                      # its context tells nothing at first, and so learns nothing in the first step
        torch.nn.init.normal_(model.context.tell.weight, std=0.1)
    model(torch.rand(2, 3, 32, 32)).square().mean().backward()
    idle = [key for key, weight in model.named_parameters() if weight.grad is None or not weight.grad.abs().sum() > 0]
    assert not idle
