"""The control for weight sharing: AnyDepth with weights of its own for every iteration, at the same MACs.

Iteration t of any depth uses the t-th block of its stage, so that the network is elastic too; it has as many blocks a
stage as its deepest depth repeats, and the parameters of all of them. A deeper one than these repeats the last block.
"""

from torch import nn

from .anydepth import AnyDepth, Loop


class Untied(AnyDepth):
    """:class:`AnyDepth` whose stages hold one block for each iteration; the arguments are the same."""

    name = "anydepth_untied"

    def __init__(self, **config):
        super().__init__(**config)
        most = [max(repeats[level] for repeats in self.depths.values()) for level in range(self.levels)]
        for name, level in STAGES.items():
            loop = getattr(self, name)
            setattr(self, name, Blocks(loop.conv1.in_channels, loop.scale is not None, most[level]))


STAGES = {"encoder1": 0, "encoder2": 1, "encoder3": 2, "latent": 3, "decoder3": 2, "decoder2": 1, "decoder1": 0}


class Blocks(nn.ModuleList):
    """As many :class:`restore.models.anydepth.Loop` s of one iteration as the deepest depth has."""

    def __init__(self, channels, conditioned, count):
        super().__init__(Loop(channels, conditioned) for _ in range(count))
        for loop in self:
            for conv in (loop.conv1, loop.conv2):
                nn.init.kaiming_normal_(conv.weight, nonlinearity="linear")
                nn.init.zeros_(conv.bias)
            loop.conv2.weight.data *= 0.1                   # as AnyDepth's own blocks begin

    def forward(self, x, repeats):
        for t in range(repeats):
            x = self[min(t, len(self) - 1)](x, 1)
        return x
