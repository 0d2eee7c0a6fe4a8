"""AnyDepth: DyNet's idea, one block a level repeated at will, in plain convolutions at half resolution.

What is special here: nearly all multiply-accumulates lie in the repeated blocks, so the depth really buys or saves time,
and all are dense 3x3 and 1x1 convolutions, which CPUs and GPUs run near their matrix rate. A block is told where it is
in its loop (t/T, 1/T; after LoopFormer, arXiv 2602.11451), skips are added (SymUNet), and instead of prompt pictures one
vector, the mean of the latent, tells the decoder what degradation was seen. DyNet: arXiv 2404.02154.
"""

import torch
import torch.nn.functional as F
from torch import nn

from ..errors import RestoreError
from .base import RestorationModel, channels_last
from .layers import LayerNorm

DEPTHS = {"tiny": (1, 1, 1, 1), "small": (2, 2, 2, 2), "medium": (3, 3, 3, 3), "large": (4, 4, 4, 4)}
SLOPE = 0.1                 # of the leaky ReLU: units of a plain one die where the same weights are applied again and again


class AnyDepth(RestorationModel):
    """A four-level U-Net, level i at 1/2**i of the size, with one shared block in each of its seven stages.

    Args:
        width: channels of levels 1, 2, 3 and latent.
        conditioned: whether a block is told its iteration.
        depths: depths by name, each four repeats: levels 1, 2, 3 and latent; the encoder and the decoder of a level
            repeat equally. default_depth: the name that ``depth=None`` means.
    """

    name = "anydepth"
    levels = 4
    multiple = minimum = 16

    def __init__(self, width=(32, 64, 104, 160), conditioned=True, depths=None, default_depth="large"):
        depths = {key: list(value) for key, value in (depths or DEPTHS).items()}
        super().__init__(dict(width=list(width), conditioned=conditioned, depths=depths, default_depth=default_depth),
                         depths, default_depth)
        if len(width) != 4:
            raise RestoreError(f"width: {list(width)} must list the channels of four levels")
        c1, c2, c3, c4 = width

        self.embed = nn.Conv2d(12, c1, 3, padding=1)
        self.encoder1 = Loop(c1, conditioned)
        self.down1 = nn.Conv2d(c1, c2, 2, stride=2)
        self.encoder2 = Loop(c2, conditioned)
        self.down2 = nn.Conv2d(c2, c3, 2, stride=2)
        self.encoder3 = Loop(c3, conditioned)
        self.down3 = nn.Conv2d(c3, c4, 2, stride=2)
        self.latent = Loop(c4, conditioned)

        self.context = Context(c4, (c3, c2, c1))
        self.up3 = nn.Conv2d(c4, 4 * c3, 1)
        self.decoder3 = Loop(c3, conditioned)
        self.up2 = nn.Conv2d(c3, 4 * c2, 1)
        self.decoder2 = Loop(c2, conditioned)
        self.up1 = nn.Conv2d(c2, 4 * c1, 1)
        self.decoder1 = Loop(c1, conditioned)
        self.output = nn.Conv2d(c1, 12, 3, padding=1)

        initialise(self)

    def restore(self, x, repeats):
        r1, r2, r3, r4 = repeats
        e1 = self.encoder1(self.embed(channels_last(F.pixel_unshuffle(x, 2))), r1)
        e2 = self.encoder2(self.down1(e1), r2)
        e3 = self.encoder3(self.down2(e2), r3)
        z = self.latent(self.down3(e3), r4)
        told3, told2, told1 = self.context(z)
        d = self.decoder3(modulate(F.pixel_shuffle(self.up3(z), 2) + e3, told3), r3)
        d = self.decoder2(modulate(F.pixel_shuffle(self.up2(d), 2) + e2, told2), r2)
        d = self.decoder1(modulate(F.pixel_shuffle(self.up1(d), 2) + e1, told1), r1)
        return F.pixel_shuffle(self.output(d), 2) + x


class Loop(nn.Module):
    """One residual block of two 3x3 convolutions, applied ``repeats`` times with the same weights.

    The block reads its input normalised, as in a transformer: what an iteration adds is then bounded whatever came before,
    so that no number of repeats runs away. What iteration t of T adds is scaled, channel by channel, by a linear function of
    (1, t/T, 1/T) that begins at 1/T: as a solver of a differential equation takes smaller steps where it takes more, so that
    all depths begin near the same function. Not ``conditioned``, everything is added as it is.
    """

    def __init__(self, channels, conditioned):
        super().__init__()
        self.norm = LayerNorm(channels)
        self.conv1 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.scale = nn.Parameter(torch.tensor([0.0, 0.0, 1.0])[:, None].repeat(1, channels)) if conditioned else None

    def forward(self, x, repeats):
        for t in range(1, repeats + 1):
            added = self.conv2(F.leaky_relu(self.conv1(self.norm(x)), SLOPE))
            x = x + added if self.scale is None else torch.addcmul(x, added, self.scale_at(t, repeats))
        return x

    def scale_at(self, t, repeats):
        """The factors (c, 1, 1) of iteration ``t`` (from 1) of ``repeats``."""
        return (self.scale[0] + self.scale[1] * (t / repeats) + self.scale[2] * (1 / repeats))[:, None, None]


class Context(nn.Module):
    """From the latent's mean over the image, scale and shift for the channels that each decoder level starts from."""

    def __init__(self, channels, widths, hidden=64):
        super().__init__()
        self.widths = list(widths)
        self.squeeze = nn.Linear(channels, hidden)
        self.tell = nn.Linear(hidden, 2 * sum(widths))

    def forward(self, z):
        mean = z.mean(dim=(2, 3))                   # normalised, since its size grows with the depth
        told = self.tell(F.leaky_relu(self.squeeze(F.layer_norm(mean, mean.shape[1:])), SLOPE))[..., None, None]
        return [part.chunk(2, dim=1) for part in told.split([2 * c for c in self.widths], dim=1)]


def modulate(x, scale_and_shift):
    """``x`` times one plus the scale, plus the shift."""
    scale, shift = scale_and_shift
    return torch.addcmul(x + shift, x, scale)


def initialise(model):
    """Variance kept from layer to layer (only the middle of a block is rectified, and leakily). What a block adds begins at
    a tenth, so that every depth starts near the same function; what the network adds to its input, at a hundredth; and
    the context tells nothing yet.
    """
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="linear")
            nn.init.zeros_(module.bias)
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, Loop):
                module.conv2.weight *= 0.1
        model.output.weight *= 0.01
        model.context.tell.weight.zero_()
