"""The parts of Restormer-type networks, shared by DyNet and PromptIR.

Restormer: arXiv 2111.09881; prompts: PromptIR, arXiv 2306.13090. All tensors are (n, c, h, w).
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from ..errors import RestoreError


class LayerNorm(nn.Module):
    """Normalises the channels of each pixel by themselves: biased variance, eps 1e-5, scale and shift."""

    def __init__(self, channels):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x):
        pixels = x.permute(0, 2, 3, 1)
        return F.layer_norm(pixels, self.weight.shape, self.weight, self.bias, 1e-5).permute(0, 3, 1, 2)


class ChannelAttention(nn.Module):
    """MDTA: attention between channels, so that its cost grows with the pixels and not with their square.

    Each head compares its channels over the whole image: softmax(q kᵀ · temperature) is a (c/heads, c/heads) matrix,
    with q and k of unit length over the pixels.
    """

    def __init__(self, channels, heads):
        super().__init__()
        if channels % heads:
            raise RestoreError(f"{channels} channels cannot be split into {heads} heads; change width, heads or "
                               "prompt_channels")
        self.heads = heads
        self.temperature = nn.Parameter(torch.ones(heads, 1, 1))
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.qkv_depthwise = nn.Conv2d(3 * channels, 3 * channels, 3, padding=1, groups=3 * channels, bias=False)
        self.project_out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, x):
        height = x.shape[2]
        qkv = self.qkv_depthwise(self.qkv(x))
        q, k, v = rearrange(qkv, "n (three head c) h w -> three n head c (h w)", three=3, head=self.heads)
        q, k = F.normalize(q, dim=-1), F.normalize(k, dim=-1)
        attention = (q @ k.transpose(-2, -1) * self.temperature).softmax(dim=-1)
        mixed = rearrange(v.transpose(-2, -1) @ attention.transpose(-2, -1), "n head (h w) c -> n (head c) h w", h=height)
        return self.project_out(mixed)

    def product_macs(self, shape):
        """Multiply-accumulates of q kᵀ and of attention times v for an input of ``shape``."""
        n, c, h, w = shape
        return 2 * n * c * (c // self.heads) * h * w


class GatedFeedForward(nn.Module):
    """GDFN: one half of the expanded channels, through GELU, gates the other."""

    def __init__(self, channels, expansion=2.66):
        super().__init__()
        hidden = int(channels * expansion)
        self.project_in = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.depthwise = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.project_out = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, x):
        gate, value = self.depthwise(self.project_in(x)).chunk(2, dim=1)
        return self.project_out(F.gelu(gate) * value)


class TransformerBlock(nn.Module):
    """Channel attention, then the gated feed-forward, each normalised before and added to what came in."""

    def __init__(self, channels, heads):
        super().__init__()
        self.norm1 = LayerNorm(channels)
        self.attn = ChannelAttention(channels, heads)
        self.norm2 = LayerNorm(channels)
        self.ffn = GatedFeedForward(channels)

    def forward(self, x):
        x = x + self.attn(self.norm1(x))
        return x + self.ffn(self.norm2(x))


class Down(nn.Module):
    """c channels to 2c at half the height and width."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False)

    def forward(self, x):
        return F.pixel_unshuffle(self.conv(x), 2)


class Up(nn.Module):
    """c channels to c/2 at twice the height and width."""

    def __init__(self, channels):
        super().__init__()
        self.conv = nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False)

    def forward(self, x):
        return F.pixel_shuffle(self.conv(x), 2)


class Prompt(nn.Module):
    """A picture made of learned components, weighted by what the image's mean feature says of its degradation."""

    def __init__(self, in_channels, channels, size, components=5):
        super().__init__()
        self.components = nn.Parameter(torch.rand(components, channels, size, size))
        self.weights = nn.Linear(in_channels, components)
        self.conv = nn.Conv2d(channels, channels, 3, padding=1, bias=False)

    def forward(self, x):
        weights = self.weights(x.mean(dim=(2, 3))).softmax(dim=1)
        prompt = torch.einsum("np,pchw->nchw", weights, self.components)
        return self.conv(F.interpolate(prompt, x.shape[2:], mode="bilinear", align_corners=False))

    def product_macs(self, shape):
        """Multiply-accumulates of the weighted sum of the components."""
        return shape[0] * self.components.numel()


class PromptFusion(nn.Module):
    """The features and their prompt side by side, through one block, and back to ``out_channels``."""

    def __init__(self, channels, prompt_channels, prompt_size, out_channels, heads=4):
        super().__init__()
        self.prompt = Prompt(channels, prompt_channels, prompt_size)
        self.block = TransformerBlock(channels + prompt_channels, heads)
        self.reduce = nn.Conv2d(channels + prompt_channels, out_channels, 1, bias=False)

    def forward(self, x):
        return self.reduce(self.block(torch.cat([x, self.prompt(x)], dim=1)))


def default_prompt_channels(width):
    """Channels of the three prompts in the published proportion to ``width``, in multiples of the four heads."""
    return tuple(max(4, round(width * share / 12) * 4) for share in (4, 8, 20))


def initialise(module):
    """Initialisation of a Restormer-type network, given to ``nn.Module.apply`` (children come before their parents).

    Truncated normal by fan-in. What a block adds begins at a tenth, so that many repeats of one block stay near the
    identity and every depth starts from the same function; what the network adds to its input, at a hundredth.
    """
    if isinstance(module, (nn.Conv2d, nn.Linear)):
        nn.init.trunc_normal_(module.weight, std=module.weight[0].numel() ** -0.5)
        if module.bias is not None:
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        if isinstance(module, (ChannelAttention, GatedFeedForward)):
            module.project_out.weight *= 0.1
        elif hasattr(module, "output"):
            module.output.weight *= 0.01
