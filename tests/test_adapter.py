"""Adapters: what they change and what they leave, their file, the networks that they refuse, and where they are used."""

import json

import numpy as np
import pytest
import torch

from restore import CheckpointError, Restorer, RestoreError, create_model, load, save
from restore.adapter import Adapter, beside, factors, fingerprint
from restore.adapter import load as load_adapter
from restore.checkpoint import _read_ours
from restore.cli import main
from restore.fast import fast
from restore.files import write_bytes
from restore.image import Image, read_rgb8, write_image

from test_models import TINY

NETWORKS = ["dynet", "gunet_t"]


def network(name, seed=0):
    torch.manual_seed(seed)
    model = create_model(name, **TINY[name]).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.rand_like(parameter) * 0.2 * parameter.abs().mean() + 0.01)
        last = [module for module in model.modules() if isinstance(module, torch.nn.Conv2d)][-1]
        last.weight.mul_(0.02)               # a change of the image that does not saturate
    return model


def adapter_for(model, rank=2, seed=1):
    """An adapter of every second convolution or linear layer, of a size that shows."""
    generator = torch.Generator().manual_seed(seed)
    layers = [(n, m) for n, m in model.named_modules() if isinstance(m, (torch.nn.Conv2d, torch.nn.Linear))][::2]
    changes = {}
    for name, layer in layers:
        size = 0.3 * layer.weight.detach().abs().mean()
        shape = factors(layer.weight.shape, rank)
        if shape is None:
            changes[f"{name}.weight"] = {"delta": size * torch.randn(layer.weight.shape, generator=generator)}
        else:
            outputs, rank, rest = shape
            changes[f"{name}.weight"] = {"up": size * torch.randn(outputs, rank, generator=generator),
                                         "down": torch.randn(rank, rest, generator=generator)}
    facts = {"base": fingerprint(model), "base_name": "tiny", "network": model.name, "task": "haze", "rank": rank}
    return Adapter(changes, facts)


def by_hand(model, adapter):
    """The state dict with the changes, computed in NumPy."""
    state = {key: value.clone() for key, value in model.state_dict().items()}
    for name, parts in adapter.changes.items():
        change = parts["delta"].numpy() if "delta" in parts else np.dot(parts["up"].numpy(), parts["down"].numpy())
        state[name] += torch.from_numpy(change.reshape(state[name].shape))
    return state


@pytest.mark.parametrize("name", NETWORKS)
def test_merged_weights_are_those_computed_by_hand_and_the_rest_is_shared(name):
    model = network(name)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    adapter = adapter_for(model)
    merged = adapter.merged(model)
    expected = by_hand(model, adapter)
    for key, value in merged.state_dict().items():
        torch.testing.assert_close(value, expected[key], rtol=1e-5, atol=1e-6)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    own, theirs = dict(model.named_parameters()), dict(merged.named_parameters())
    assert {key for key in own if theirs[key] is not own[key]} == set(adapter.changes)
    assert 0 < len(adapter.changes) < len(own)


@pytest.mark.parametrize("name, depth", [("dynet", "small"), ("dynet", "large"), ("dynet", (1, 2, 1, 3)), ("gunet_t", None)])
def test_at_every_depth_and_on_the_fast_path(name, depth):
    model = network(name)
    adapter = adapter_for(model)
    plain = create_model(name, **TINY[name]).eval()
    plain.load_state_dict(by_hand(model, adapter))
    x = torch.rand(1, 3, 24, 32, generator=torch.Generator().manual_seed(2))
    with torch.no_grad():
        expected, merged = plain(x, depth), adapter.merged(model)
        torch.testing.assert_close(merged(x, depth), expected, atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(fast(merged)(x, depth), expected, atol=1e-4, rtol=1e-3)
        called = torch.func.functional_call(model, adapter.weights(model), (x, depth))
        torch.testing.assert_close(called, expected, atol=1e-5, rtol=1e-4)
        assert (model(x, depth) - expected).abs().max() > 1e-3


def test_a_weight_in_two_places_is_changed_in_both():
    model = network("dynet")
    model.encoder2.attn.qkv.weight = model.decoder2.attn.qkv.weight
    weight = model.encoder2.attn.qkv.weight
    adapter = Adapter({"encoder2.attn.qkv.weight": {"delta": torch.ones_like(weight)}}, {"base": fingerprint(model)})
    merged = adapter.merged(model)
    assert merged.encoder2.attn.qkv.weight is merged.decoder2.attn.qkv.weight
    assert torch.equal(merged.encoder2.attn.qkv.weight, weight + 1)


def test_strength():
    model = network("dynet")
    adapter = adapter_for(model)
    name = next(iter(adapter.changes))
    none, half, whole = (dict(adapter.merged(model, s).named_parameters())[name] for s in (0, 0.5, 1))
    assert torch.equal(none, dict(model.named_parameters())[name])
    torch.testing.assert_close(half - none, (whole - none) / 2, rtol=1e-3, atol=1e-6)


def test_low_rank_only_where_it_is_smaller():
    assert factors((16, 16, 3, 3), 2) == (16, 2, 144)
    assert factors((16, 1, 3, 3), 8) is None                  # depthwise: 8 * 25 numbers against 144


def test_the_file_comes_back_and_is_the_same_twice(tmp_path):
    model = network("dynet")
    adapter = adapter_for(model)
    adapter.save(tmp_path / "a.safetensors")
    again = load_adapter(tmp_path / "a.safetensors")
    again.save(tmp_path / "b.safetensors")
    assert (tmp_path / "a.safetensors").read_bytes() == (tmp_path / "b.safetensors").read_bytes()
    assert again.facts == adapter.facts and again.changes.keys() == adapter.changes.keys()
    assert all(torch.equal(again.changes[n][p], t) for n, parts in adapter.changes.items() for p, t in parts.items())
    assert again.count() == sum(p.numel() for parts in adapter.changes.values() for p in parts.values())


def test_a_wrong_base_is_refused(tmp_path):
    model = network("dynet")
    adapter = adapter_for(model)
    with pytest.raises(CheckpointError, match="made for tiny .dynet.; this is gunet_t"):
        adapter.merged(network("gunet_t"))
    wider = create_model("dynet", **{**TINY["dynet"], "width": 16})
    with pytest.raises(CheckpointError, match="another shape"):
        adapter.merged(wider)
    other = network("dynet", seed=7)
    with pytest.raises(CheckpointError, match="other weights of dynet"):
        adapter.merged(other)
    assert adapter.merged(other, any_base=True).name == "dynet"
    with pytest.raises(CheckpointError, match="other weights"):
        adapter.merged(adapter.merged(model))                  # twice is not what was measured


def test_a_base_stored_in_half_precision_is_the_same_base(tmp_path):
    model = network("dynet")
    save(model, tmp_path / "half.safetensors", dtype=torch.float16)
    half = load(tmp_path / "half.safetensors")
    assert not torch.equal(half.embed.weight, model.embed.weight)
    assert fingerprint(half) == fingerprint(model)
    with torch.no_grad():
        half.embed.weight[0, 0, 0, 0] += 0.01
    assert fingerprint(half) != fingerprint(model)


@pytest.mark.parametrize("content, message", [
    (b"", "damaged, or no safetensors"), (b"\x08\0\0\0\0\0\0\0{}", "damaged, or no safetensors|not an adapter"),
])
def test_bad_files_are_named(tmp_path, content, message):
    write_bytes(tmp_path / "a.safetensors", content)
    with pytest.raises(CheckpointError, match=f"a.safetensors: ({message})"):
        load_adapter(tmp_path / "a.safetensors")
    with pytest.raises(CheckpointError, match="no such file"):
        load_adapter(tmp_path / "none.safetensors")


def test_a_checkpoint_is_no_adapter_and_an_adapter_no_checkpoint(tmp_path):
    model = network("dynet")
    save(model, tmp_path / "model.safetensors")
    adapter_for(model).save(tmp_path / "adapter.safetensors")
    with pytest.raises(CheckpointError, match="not an adapter"):
        load_adapter(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointError, match="adapter of a network, not a network; give it with --adapter"):
        load(tmp_path / "adapter.safetensors")
    assert _read_ours(tmp_path / "model.safetensors")[1]["model"] == "dynet"


@pytest.fixture
def files(tmp_path):
    """A checkpoint folder with an adapter beside it and one below, a photo, and the model with its adapter."""
    model = network("dynet")
    save(model, tmp_path / "net")
    adapter = adapter_for(model)
    adapter.save(tmp_path / "net" / "haze.safetensors")
    adapter.save(tmp_path / "net" / "night" / "adapter.safetensors")
    adapter_for(network("dynet", seed=7)).save(tmp_path / "net" / "of_another.safetensors")
    pixels = torch.rand(3, 40, 48, generator=torch.Generator().manual_seed(3))
    write_image(tmp_path / "photo.png", Image(pixels=pixels))
    return tmp_path, model, adapter


def test_restorer_switches_it_on_and_off(files):
    folder, model, adapter = files
    x = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(2))
    with_file = Restorer(folder / "net", depth="small", adapter=folder / "net" / "haze.safetensors")
    off = with_file.adapted(None)
    merged = Restorer(adapter.merged(model), depth="small")
    assert torch.equal(with_file.restore(x), merged.restore(x))
    assert torch.equal(off.restore(x), Restorer(model, depth="small").restore(x))
    assert torch.equal(off.adapted(adapter).restore(x), merged.restore(x)) and off.depth == merged.depth
    assert not torch.equal(off.restore(x), merged.restore(x))


def test_run_with_and_without(files):
    folder, model, adapter = files
    given = ["run", f"{folder / 'photo.png'}", "-m", f"{folder / 'net'}", "-d", "1,1,1,2"]
    assert main([*given, "-o", f"{folder / 'off.png'}"]) == 0
    assert main([*given, "-o", f"{folder / 'on.png'}", "--adapter", f"{folder / 'net/haze.safetensors'}"]) == 0
    expected = Restorer(adapter.merged(model), depth="1,1,1,2")(read_rgb8(folder / "photo.png"))
    assert np.array_equal(read_rgb8(folder / "on.png"), expected)
    assert not np.array_equal(read_rgb8(folder / "off.png"), expected)


def test_run_refuses_the_adapter_of_another_network(files, capsys):
    folder, *_ = files
    assert main(["run", f"{folder / 'photo.png'}", "-m", f"{folder / 'net'}", "-o", f"{folder / 'on.png'}",
                 "--adapter", f"{folder / 'net/of_another.safetensors'}"]) == 1
    assert "of_another.safetensors: made for other weights of dynet" in capsys.readouterr().err
    assert not (folder / "on.png").exists()


def test_info_lists_those_beside_the_checkpoint(files, capsys):
    folder, model, _ = files
    assert main(["info", f"{folder / 'net'}", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)[0]["adapters"]
    assert [facts["file"] for facts in listed] == [str(folder / name) for name in ("net/haze.safetensors",
                                                                                   "net/night/adapter.safetensors")]
    assert main(["info", f"{folder / 'net'}"]) == 0
    assert f"adapter {folder / 'net/haze.safetensors'}: task haze, rank 2" in capsys.readouterr().out
    found = beside(folder / "net" / "model.safetensors", model)
    assert [path.name for path, _ in found] == ["haze.safetensors", "adapter.safetensors"]


def test_export_takes_it_into_the_weights(files):
    folder, model, adapter = files
    out = folder / "adapted.pt2"
    given = ["export", f"{folder / 'net'}", "--adapter", f"{folder / 'net/haze.safetensors'}", "-o", f"{out}"]
    assert main([*given, "-d", "small", "--size", "24x32"]) == 0
    x = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(2))
    expected = Restorer(adapter.merged(model), depth="small").restore(x)
    torch.testing.assert_close(Restorer(out).restore(x), expected, atol=1e-4, rtol=1e-3)
    with pytest.raises(RestoreError, match="takes no adapter"):
        Restorer(out, adapter=adapter)


@pytest.mark.slow
def test_export_to_onnx(files):
    pytest.importorskip("onnxscript")
    pytest.importorskip("onnxruntime")
    folder, model, adapter = files
    out = folder / "adapted.onnx"
    given = ["export", f"{folder / 'net'}", "--adapter", f"{folder / 'net/haze.safetensors'}", "-o", f"{out}"]
    assert main([*given, "-d", "2,1,1,1"]) == 0
    x = torch.rand(3, 24, 32, generator=torch.Generator().manual_seed(2))
    expected = Restorer(adapter.merged(model), depth="2,1,1,1").restore(x)
    torch.testing.assert_close(Restorer(out).restore(x), expected, atol=1e-4, rtol=1e-3)


def test_bench_scores_a_network_with_and_without(files):
    from restore.benchmark.competitors import competitors
    folder, *_ = files
    rows = competitors([f"net={folder / 'net'}"], ["small", "1,1,1,2"], [], torch.device("cpu"), alone=True,
                       adapters=[folder / "net/haze.safetensors"])
    assert [row.name for row in rows] == ["net@small", "net@1,1,1,2", "net+haze@small", "net+haze@1,1,1,2"]
    assert len({row.key for row in rows}) == 4
