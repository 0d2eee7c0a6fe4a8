"""DyNet, Dynamic Pre-training (arXiv 2404.02154): one block a level, repeated as often as the depth says.

What is special here: at each level of an encoder-decoder of Restormer blocks the *same* weights are applied r times,
in the encoder and again (with weights of their own) in the decoder. The depth is therefore free at run time: small is
r = (2, 3, 3, 4), large r = (4, 6, 6, 8), and any other tuple works on the same checkpoint. Prompts tell the decoder
what degradation the encoder saw; they sit after the latent and on the skips of levels 3 and 2.
"""

import torch
from torch import nn

from .base import RestorationModel, channels_last
from .layers import Down, PromptFusion, TransformerBlock, Up, default_prompt_channels, initialise

SMALL, LARGE = (2, 3, 3, 4), (4, 6, 6, 8)


class DyNet(RestorationModel):
    """DyNet with ``width`` channels at full resolution (48 as published).

    Args:
        width: channels of level 1; level i has ``width * 2**(i-1)``. A multiple of the largest head count.
        heads: attention heads of levels 1, 2, 3 and latent.
        prompt_channels: channels of the prompts on level 2's skip, level 3's skip and the latent; in proportion to
            ``width`` by default.
        prompt_sizes: their side lengths before they are resized to the features.
        refinement: blocks at full resolution after the decoder; unshared, and the same at every depth.
        depths: depths by name. default_depth: the name that ``depth=None`` means.
    """

    name = "dynet"
    levels = 4

    def __init__(self, width=48, heads=(1, 2, 4, 8), prompt_channels=None, prompt_sizes=(64, 32, 16), refinement=4,
                 depths=None, default_depth="large"):
        prompts = tuple(prompt_channels or default_prompt_channels(width))
        depths = {key: list(value) for key, value in (depths or {"small": SMALL, "large": LARGE}).items()}
        super().__init__(dict(width=width, heads=list(heads), prompt_channels=list(prompts),
                              prompt_sizes=list(prompt_sizes), refinement=refinement,
                              depths=depths, default_depth=default_depth), depths, default_depth)
        c = width

        self.embed = nn.Conv2d(3, c, 3, padding=1, bias=False)
        self.encoder1 = TransformerBlock(c, heads[0])
        self.down1 = Down(c)
        self.encoder2 = TransformerBlock(2 * c, heads[1])
        self.down2 = Down(2 * c)
        self.encoder3 = TransformerBlock(4 * c, heads[2])
        self.down3 = Down(4 * c)
        self.latent = TransformerBlock(8 * c, heads[3])

        self.prompt3 = PromptFusion(8 * c, prompts[2], prompt_sizes[2], 4 * c)
        self.up3 = Up(4 * c)
        self.prompt2 = PromptFusion(4 * c, prompts[1], prompt_sizes[1], 4 * c)
        self.merge3 = nn.Conv2d(6 * c, 4 * c, 1, bias=False)
        self.decoder3 = TransformerBlock(4 * c, heads[2])
        self.up2 = Up(4 * c)
        self.prompt1 = PromptFusion(2 * c, prompts[0], prompt_sizes[0], 2 * c)
        self.merge2 = nn.Conv2d(4 * c, 2 * c, 1, bias=False)
        self.decoder2 = TransformerBlock(2 * c, heads[1])
        self.up1 = Up(2 * c)
        self.decoder1 = TransformerBlock(2 * c, heads[0])
        self.refinement = nn.Sequential(*(TransformerBlock(2 * c, heads[0]) for _ in range(refinement)))
        self.output = nn.Conv2d(2 * c, 3, 3, padding=1, bias=False)

        self.apply(initialise)

    def encode(self, x, repeats):
        """The features of levels 1, 2, 3 and the latent of a padded batch: what a classification head looks at."""
        r1, r2, r3, r4 = repeats
        e1 = repeat(self.encoder1, self.embed(channels_last(x)), r1)
        e2 = repeat(self.encoder2, self.down1(e1), r2)
        e3 = repeat(self.encoder3, self.down2(e2), r3)
        return e1, e2, e3, repeat(self.latent, self.down3(e3), r4)

    def decode(self, features, repeats):
        """What is to be added to the input, from the features of :meth:`encode`."""
        r1, r2, r3, _ = repeats
        e1, e2, e3, z = features
        d = self.up3(self.prompt3(z))
        d = repeat(self.decoder3, self.merge3(torch.cat([d, self.prompt2(e3)], dim=1)), r3)
        d = self.up2(d)
        d = repeat(self.decoder2, self.merge2(torch.cat([d, self.prompt1(e2)], dim=1)), r2)
        d = self.up1(d)
        d = repeat(self.decoder1, torch.cat([d, e1], dim=1), r1)
        return self.output(self.refinement(d))

    def restore(self, x, repeats):
        return self.decode(self.encode(x, repeats), repeats) + x


def repeat(block, x, times):
    """``block`` applied ``times`` times, with the same weights."""
    for _ in range(times):
        x = block(x)
    return x
