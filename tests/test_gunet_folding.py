"""gUNet without its batch normalisations is the same function."""

import pytest
import torch
from torch import nn

from restore import checkpoint
from restore.errors import RestoreError
from restore.models import create_model
from restore.models.gunet import fold_batchnorm


def trained_looking(name, **config):
    """A gUNet whose normalisations are far from the identity that fresh ones are, with statistics, scales and shifts of any size."""
    torch.manual_seed(3)
    model = create_model(name, **config)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_(0, 2)
            module.running_var.uniform_(0.01, 5)
            nn.init.normal_(module.weight, 1, 0.5)
            nn.init.normal_(module.bias, 0, 0.5)
    return model.eval()


@pytest.mark.parametrize("name, config", [("gunet_t", {}), ("gunet_b", {"width": 8})])
def test_output_is_unchanged(name, config):
    model = trained_looking(name, **config)
    folded = fold_batchnorm(model)
    assert not any(isinstance(m, nn.BatchNorm2d) for m in folded.modules())
    image = torch.rand(2, 3, 37, 50, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        before, after = model(image), folded(image)
        assert (before - model.train()(image)).abs().max() > 1e-3        # the statistics do matter in this network
    assert (before - after).abs().max() < 1e-5


def test_a_folded_network_travels_as_a_checkpoint(tmp_path):
    model = trained_looking("gunet_t", width=8)
    folded = fold_batchnorm(model)
    checkpoint.save(folded, tmp_path / "folded.safetensors")
    loaded = checkpoint.load(tmp_path / "folded.safetensors")
    image = torch.rand(1, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(loaded(image), folded(image))
        assert torch.equal(fold_batchnorm(loaded)(image), folded(image))     # folding again changes nothing
        assert (loaded(image) - model(image)).abs().max() < 1e-5


def test_the_original_stays_as_it_was():
    model = trained_looking("gunet_t", width=8)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    fold_batchnorm(model)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_other_networks_are_refused():
    with pytest.raises(RestoreError, match="dynet"):
        fold_batchnorm(create_model("dynet", width=8))
