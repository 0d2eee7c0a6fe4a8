"""PromptIR (arXiv 2306.13090), the baseline: DyNet's parts, but every block has weights of its own.

The prompts sit on the decoder side: after the latent, after decoder level 3 and after decoder level 2; skips are
concatenated as they are.
"""

import torch
from torch import nn

from .base import RestorationModel, channels_last
from .layers import Down, PromptFusion, TransformerBlock, Up, default_prompt_channels, initialise


class PromptIR(RestorationModel):
    """PromptIR with ``width`` channels at full resolution (48 as published) and ``blocks`` per level.

    Args: as those of :class:`restore.models.dynet.DyNet`; ``blocks`` counts levels 1, 2, 3 and latent and is fixed.
    """

    name = "promptir"

    def __init__(self, width=48, blocks=(4, 6, 6, 8), heads=(1, 2, 4, 8), prompt_channels=None,
                 prompt_sizes=(64, 32, 16), refinement=4):
        prompts = tuple(prompt_channels or default_prompt_channels(width))
        super().__init__(dict(width=width, blocks=list(blocks), heads=list(heads), prompt_channels=list(prompts),
                              prompt_sizes=list(prompt_sizes), refinement=refinement))
        c = width

        self.embed = nn.Conv2d(3, c, 3, padding=1, bias=False)
        self.encoder1 = stack(c, heads[0], blocks[0])
        self.down1 = Down(c)
        self.encoder2 = stack(2 * c, heads[1], blocks[1])
        self.down2 = Down(2 * c)
        self.encoder3 = stack(4 * c, heads[2], blocks[2])
        self.down3 = Down(4 * c)
        self.latent = stack(8 * c, heads[3], blocks[3])

        self.prompt3 = PromptFusion(8 * c, prompts[2], prompt_sizes[2], 4 * c)
        self.up3 = Up(4 * c)
        self.merge3 = nn.Conv2d(6 * c, 4 * c, 1, bias=False)
        self.decoder3 = stack(4 * c, heads[2], blocks[2])
        self.prompt2 = PromptFusion(4 * c, prompts[1], prompt_sizes[1], 4 * c)
        self.up2 = Up(4 * c)
        self.merge2 = nn.Conv2d(4 * c, 2 * c, 1, bias=False)
        self.decoder2 = stack(2 * c, heads[1], blocks[1])
        self.prompt1 = PromptFusion(2 * c, prompts[0], prompt_sizes[0], 2 * c)
        self.up1 = Up(2 * c)
        self.decoder1 = stack(2 * c, heads[0], blocks[0])
        self.refinement = stack(2 * c, heads[0], refinement)
        self.output = nn.Conv2d(2 * c, 3, 3, padding=1, bias=False)

        self.apply(initialise)

    def restore(self, x, repeats):
        e1 = self.encoder1(self.embed(channels_last(x)))
        e2 = self.encoder2(self.down1(e1))
        e3 = self.encoder3(self.down2(e2))
        z = self.latent(self.down3(e3))
        d = self.up3(self.prompt3(z))
        d = self.decoder3(self.merge3(torch.cat([d, e3], dim=1)))
        d = self.up2(self.prompt2(d))
        d = self.decoder2(self.merge2(torch.cat([d, e2], dim=1)))
        d = self.up1(self.prompt1(d))
        d = self.decoder1(torch.cat([d, e1], dim=1))
        return self.output(self.refinement(d)) + x


def stack(channels, heads, blocks):
    """``blocks`` transformer blocks in a row, each with its own weights."""
    return nn.Sequential(*(TransformerBlock(channels, heads) for _ in range(blocks)))
