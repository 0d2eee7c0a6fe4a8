"""gUNet (arXiv 2209.11448): a seven-stage U-Net of gated convolutions for dehazing, in sizes T, S, B and D.

Published weights live on [-1, 1]; :meth:`GUNet.restore` hides that, so that it speaks [0, 1] like everything here.
"""

import math

import torch.nn.functional as F
from torch import nn

from ..errors import RestoreError
from .base import RestorationModel, channels_last

BLOCKS = {"gunet_t": 2, "gunet_s": 4, "gunet_b": 8, "gunet_d": 16}


class GatedBlock(nn.Module):
    """gConv: a normalised input, mixed over channels and a 5x5 neighbourhood, gated by its own sigmoid."""

    def __init__(self, channels, folded=False):
        super().__init__()
        self.norm = nn.Identity() if folded else nn.BatchNorm2d(channels)
        self.value = nn.Conv2d(channels, channels, 1)
        self.depthwise = nn.Conv2d(channels, channels, 5, padding=2, groups=channels, padding_mode="reflect")
        self.gate = nn.Conv2d(channels, channels, 1)
        self.project = nn.Conv2d(channels, channels, 1)

    def forward(self, x):
        normed = self.norm(x)
        return x + self.project(self.depthwise(self.value(normed)) * self.gate(normed).sigmoid())


class SelectiveFusion(nn.Module):
    """SK fusion: per channel, how much of the main path and how much of the skip."""

    def __init__(self, channels):
        super().__init__()
        hidden = max(channels // 8, 4)
        self.squeeze = nn.Conv2d(channels, hidden, 1, bias=False)
        self.excite = nn.Conv2d(hidden, 2 * channels, 1, bias=False)

    def forward(self, main, skip):
        pooled = (main + skip).mean(dim=(2, 3), keepdim=True)
        logits = self.excite(F.relu(self.squeeze(pooled))).unflatten(1, (2, -1))
        weights = logits.softmax(dim=1)
        return main * weights[:, 0] + skip * weights[:, 1]


class GUNet(RestorationModel):
    """gUNet of ``width`` channels; ``blocks`` gated blocks a stage, twice as many in the middle one.

    Args:
        blocks: 2, 4, 8 or 16 for T, S, B and D.
        width: channels at full resolution (24 as published), doubled at each of the three halvings.
        folded: without normalisation, as :func:`fold_batchnorm` makes it for deployment.
    """

    minimum = 24                              # reflecting 2 pixels needs 3 at an eighth of the size

    def __init__(self, blocks=2, width=24, name="gunet_t", folded=False):
        self.name = name
        super().__init__(dict(blocks=blocks, width=width, **({"folded": True} if folded else {})))
        widths = [width * 2 ** level for level in range(4)]

        self.embed = nn.Conv2d(3, width, 3, padding=1, padding_mode="reflect")
        self.encoder = nn.ModuleList(gated_stage(w, blocks, folded) for w in widths[:3])
        self.downs = nn.ModuleList(nn.Conv2d(w, 2 * w, 2, stride=2) for w in widths[:3])
        self.middle = gated_stage(widths[3], 2 * blocks, folded)
        self.ups = nn.ModuleList(nn.Conv2d(2 * w, 4 * w, 1) for w in widths[:3])
        self.skips = nn.ModuleList(nn.Conv2d(w, w, 1) for w in widths[:3])
        self.fusions = nn.ModuleList(SelectiveFusion(w) for w in widths[:3])
        self.decoder = nn.ModuleList(gated_stage(w, blocks, folded) for w in widths[:3])
        self.output = nn.Conv2d(width, 3, 3, padding=1, padding_mode="reflect")

        self._initialise(total_blocks=8 * blocks)

    def restore(self, x, repeats):
        x = channels_last(x * 2 - 1)
        features, skips = self.embed(x), []
        for stage, skip, down in zip(self.encoder, self.skips, self.downs):
            features = stage(features)
            skips.append(skip(features))
            features = down(features)
        features = self.middle(features)
        for level in (2, 1, 0):
            features = F.pixel_shuffle(self.ups[level](features), 2)
            features = self.decoder[level](self.fusions[level](features, skips[level]))
        return (self.output(features) + x + 1) / 2

    def _initialise(self, total_blocks):
        """The paper's rule: the more blocks there are, the smaller each gated branch begins."""
        gain = (8 * total_blocks) ** -0.25
        for block in self.modules():
            if isinstance(block, GatedBlock):
                for conv in (block.value, block.depthwise, block.gate, block.project):
                    fan_in = conv.weight[0].numel()
                    fan_out = conv.weight.shape[0] * conv.weight[0, 0].numel()
                    nn.init.trunc_normal_(conv.weight, std=gain * math.sqrt(2 / (fan_in + fan_out)))
                    nn.init.zeros_(conv.bias)


def gated_stage(channels, blocks, folded=False):
    """``blocks`` gated blocks in a row at one resolution."""
    return nn.Sequential(*(GatedBlock(channels, folded) for _ in range(blocks)))


def fold_batchnorm(model):
    """A copy of a gUNet in evaluation mode without its normalisations: the same function, fewer operations.

    In a gated block the normalisation's only readers are two 1x1 convolutions, which see no padding, so its running
    scale and shift go into their weights and biases exactly. The copy is an ordinary gUNet with ``folded`` in its
    configuration: it is saved, loaded and exported like any other, but must not be trained further. A network that
    is folded already is copied as it is; raises :class:`RestoreError` for another network.
    """
    if not isinstance(model, GUNet):
        raise RestoreError(f"{getattr(model, 'name', type(model).__name__)} has no batch normalisation to fold; gunet_* has")
    folded = GUNet(**{**model.config, "folded": True}, name=model.name)
    folded.provenance = dict(model.provenance)
    weights = {key: value.clone() for key, value in model.state_dict().items() if ".norm." not in key}
    for name, block in model.named_modules():
        if isinstance(block, GatedBlock) and isinstance(block.norm, nn.BatchNorm2d):
            norm = block.norm
            scale = norm.weight.double() / (norm.running_var.double() + norm.eps).sqrt()
            shift = norm.bias.double() - norm.running_mean.double() * scale
            for part in ("value", "gate"):
                conv = getattr(block, part)
                weight = conv.weight.detach().double()
                weights[f"{name}.{part}.weight"] = (weight * scale[:, None, None]).to(conv.weight.dtype)
                weights[f"{name}.{part}.bias"] = (conv.bias.double() + weight[:, :, 0, 0] @ shift).to(conv.bias.dtype)
    folded.load_state_dict({key: value.detach() for key, value in weights.items()})
    return folded.to(next(model.parameters()).device).eval()
