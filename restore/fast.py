"""The fast way to run a network on a CPU: the same modules and weights, another forward for the blocks that bind.

What binds the plain forward of these networks is not arithmetic but memory: the depthwise convolutions, the layer norms
and the gates each pass over tensors of hundreds of megabytes. Here a block walks down the image in **strips of rows**
small enough that everything between its input and its output stays in the cache. A depthwise convolution keeps the
last rows of the strip before, so nothing is computed twice. Channel attention needs one sum over the whole image
(q kT), so its block walks twice: once for that sum, then for the output, where the small attention matrix and the output
projection have become one matrix and v is made where it is used.

:func:`fast` returns a network with the same call and, to rounding, the same output; training and export keep the plain
forward. What stays as it is (3x3 convolutions, skips, prompts) is run by the plain modules.
"""

import copy
import functools

import torch
import torch.nn.functional as F
from torch import nn

from .models.gunet import GatedBlock, GUNet, fold_batchnorm
from .models.layers import TransformerBlock

STRIP_BYTES = 6 << 20                        # of the widest intermediate of a strip: measured, flat from 4 to 8 MB


def fast(model, dtype=torch.float32):
    """A network for inference on CPUs that equals ``model`` to rounding and shares the weights that it need not repack.

    ``dtype``: ``torch.float32``, or ``torch.bfloat16`` for what lies between the first and the last convolution; these
    two and the global residual stay float32, because a bfloat16 output costs quality. Give float32 images in either
    case. The result is a snapshot of the weights. A network without a block known here is returned as it is.
    """
    if not any(type(module) in STRIPS for module in model.modules()):
        return model
    if isinstance(model, GUNet):
        model = fold_batchnorm(model)
    shared = {id(t): t for t in [*model.parameters(), *model.buffers()]} if dtype == torch.float32 else {}
    quick = copy.deepcopy(model, shared).eval()
    if dtype != torch.float32:
        ends = quick.embed, quick.output
        quick.embed = quick.output = None
        quick.to(dtype)
        quick.embed, quick.output = Cast(ends[0], dtype), Cast(ends[1], torch.float32)
    _swap(quick)
    return quick


def _swap(module):
    for name, child in module.named_children():
        if type(child) in STRIPS:
            setattr(module, name, STRIPS[type(child)](child))
        else:
            _swap(child)


class Cast(nn.Module):
    """``inner`` run in float32, its result handed on in ``outside``."""

    def __init__(self, inner, outside):
        super().__init__()
        self.inner, self.outside = inner, outside

    def forward(self, x):
        return self.inner(x.float()).to(self.outside)


class StripTransformer(nn.Module):
    """:class:`restore.models.layers.TransformerBlock` in strips of rows."""

    def __init__(self, block):
        super().__init__()
        attention, ffn = block.attn, block.ffn
        self.channels, self.heads = attention.project_out.weight.shape[0], attention.heads
        self.norm1, self.norm2 = _norm(block.norm1), _norm(block.norm2)
        c = self.channels
        qkv, depthwise = _matrix(attention.qkv), attention.qkv_depthwise.weight.detach()
        self.to_qk, self.to_v = qkv[:, :2 * c].contiguous(), qkv[:, 2 * c:].contiguous()
        self.qk_depthwise, self.v_depthwise = depthwise[:2 * c].contiguous(), depthwise[2 * c:].contiguous()
        self.temperature = attention.temperature.detach().float()
        self.project = _matrix(attention.project_out)
        # the hidden channels are padded to whole vectors: 127 -> 128, 255 -> 256 ...; gelu(0) * 0 adds nothing
        hidden = ffn.project_out.weight.shape[1]
        self.hidden = -(-hidden // 16) * 16
        pad = self.hidden - hidden
        self.to_gate, self.to_value = (F.pad(half, (0, pad)).contiguous() for half in _matrix(ffn.project_in).chunk(2, dim=1))
        self.gate_depthwise, self.value_depthwise = (F.pad(half, (0, 0) * 3 + (0, pad))
                                                     for half in ffn.depthwise.weight.detach().chunk(2))
        self.from_hidden = F.pad(_matrix(ffn.project_out), (0, 0, 0, pad))

    def forward(self, x):
        pixels = x.permute(0, 2, 3, 1).contiguous()
        out = torch.empty_like(pixels)
        for image, result in zip(pixels, out):
            self._mix(image, self._attention(image), result)
        return out.permute(0, 3, 1, 2)

    def _strips(self, image):
        width = image.shape[1]
        rows = max(4, STRIP_BYTES // (2 * self.hidden * width * image.element_size()))
        return rows, image.split(rows)

    def _attention(self, image):
        """The matrix (c, c) that takes v to the attention's projected output, from a pass over ``image`` (h, w, c)."""
        c, per_head = self.channels, self.channels // self.heads
        rows, strips = self._strips(image)
        window = RollingDepthwise(self.qk_depthwise, image, rows)
        gram = image.new_zeros(self.heads, per_head, per_head, dtype=torch.float32)
        squares = image.new_zeros(2 * c, dtype=torch.float32)
        for i, strip in enumerate(strips, 1):
            torch.mm(self._normed(strip, self.norm1), self.to_qk, out=window.room(len(strip)))
            qk = window.advance(last=i == len(strips))
            squares += (qk * qk).sum(0)      # many times as fast as torch.linalg.vector_norm down the columns
            for head in range(self.heads):
                first = head * per_head
                gram[head] += qk[:, first:first + per_head].t() @ qk[:, c + first:c + first + per_head]
        q_norm, k_norm = squares.sqrt_().clamp_min_(1e-12).view(2, self.heads, per_head)
        attention = (gram / (q_norm[:, :, None] * k_norm[:, None, :]) * self.temperature).softmax(dim=-1)
        projection = self.project.float().view(self.heads, per_head, c)
        return (attention.transpose(1, 2) @ projection).reshape(c, c).to(image.dtype)

    def _mix(self, image, attention, result):
        """Write the block's output into ``result``, given the matrix of :meth:`_attention`."""
        rows, strips = self._strips(image)
        v_window = RollingDepthwise(self.v_depthwise, image, rows)
        gate_window = RollingDepthwise(self.gate_depthwise, image, rows + 1, depthwise_gelu())
        value_window = RollingDepthwise(self.value_depthwise, image, rows + 1)
        flat, flat_result = image.view(-1, self.channels), result.view(-1, self.channels)
        attended = done = 0                  # pixels that the attention, and the feed-forward, have finished
        waiting = flat[:0]
        for i, strip in enumerate(strips, 1):
            last = i == len(strips)
            torch.mm(self._normed(strip, self.norm1), self.to_v, out=v_window.room(len(strip)))
            v = v_window.advance(last)
            y = torch.addmm(flat[attended:attended + len(v)], v, attention)
            attended += len(v)
            normed, finished = self._normed(y, self.norm2), len(y) // image.shape[1]
            torch.mm(normed, self.to_gate, out=gate_window.room(finished))
            torch.mm(normed, self.to_value, out=value_window.room(finished))
            gated = value_window.advance(last).mul_(gate_window.advance(last))
            waiting = torch.cat([waiting, y])
            torch.addmm(waiting[:len(gated)], gated, self.from_hidden, out=flat_result[done:done + len(gated)])
            waiting = waiting[len(gated):]
            done += len(gated)

    def _normed(self, rows, norm):
        return F.layer_norm(rows, (self.channels,), *norm, 1e-5).view(-1, self.channels)


class StripGated(nn.Module):
    """:class:`restore.models.gunet.GatedBlock`, its normalisation folded, in strips of rows."""

    def __init__(self, block):
        super().__init__()
        self.to_value, self.value_bias = _matrix(block.value), block.value.bias.detach()
        self.to_gate, self.gate_bias = _matrix(block.gate), block.gate.bias.detach()
        self.depthwise, self.depthwise_bias = block.depthwise.weight.detach(), block.depthwise.bias.detach()
        self.project, self.project_bias = _matrix(block.project), block.project.bias.detach()
        self.channels = len(self.project_bias)

    def forward(self, x):
        pixels = x.permute(0, 2, 3, 1).contiguous()
        out = torch.empty_like(pixels)
        for image, result in zip(pixels, out):
            self._gate(image, result)
        return out.permute(0, 3, 1, 2)

    def _gate(self, image, result):
        _, width, channels = image.shape
        rows = max(4, STRIP_BYTES // (channels * width * image.element_size()))
        strips = image.split(rows)
        window = RollingDepthwise(self.depthwise, image, rows, functools.partial(_depthwise, bias=self.depthwise_bias),
                                  reflect=True)
        flat, flat_result = image.view(-1, channels), result.view(-1, channels)
        done = 0
        for i, strip in enumerate(strips, 1):
            wide = torch.cat([strip[:, 1:3].flip(1), strip, strip[:, -3:-1].flip(1)], dim=1)
            torch.addmm(self.value_bias, wide.view(-1, channels), self.to_value, out=window.room(len(strip)))
            mixed = window.advance(last=i == len(strips))
            x = flat[done:done + len(mixed)]
            mixed.mul_(torch.addmm(self.gate_bias, x, self.to_gate).sigmoid_())
            torch.addmm(x + self.project_bias, mixed, self.project, out=flat_result[done:done + len(mixed)])
            done += len(mixed)


class RollingDepthwise:
    """A depthwise convolution over rows that arrive from top to bottom.

    ``room(n)`` is where the next n rows are to be written, as a matrix (n * width, channels); ``advance(last)`` convolves
    what has arrived and returns the finished rows in the same form: as many rows late as the kernel reaches down,
    until the last. Beyond the image there is zero, or with ``reflect`` its mirror image; then the rows that are
    written must bring their mirrored columns. ``rows`` is the most that one step brings.
    """

    def __init__(self, weight, image, rows, convolve=None, reflect=False):
        self.weight, self.convolve, self.reflect = weight, convolve or _depthwise, reflect
        self.reach = weight.shape[-1] // 2
        self.channels = len(weight)
        width = image.shape[1] + (2 * self.reach if reflect else 0)
        self.buffer = image.new_empty(rows + 3 * self.reach, width, self.channels)
        self.held, self.filled = self.reach, 0
        if not reflect:
            self.buffer[:self.reach] = 0

    def room(self, rows):
        self.filled = self.held + rows
        return self.buffer[self.held:self.filled].view(-1, self.channels)

    def advance(self, last):
        reach, buffer = self.reach, self.buffer
        if self.reflect and self.held == reach:
            buffer[:reach] = buffer[reach + 1:2 * reach + 1].flip(0)
        if last:
            buffer[self.filled:self.filled + reach] = \
                buffer[self.filled - reach - 1:self.filled - 1].flip(0) if self.reflect else 0
            self.filled += reach
        rows = buffer[:self.filled][None].permute(0, 3, 1, 2)    # in this order PyTorch sees channels-last
        out = self.convolve(rows, self.weight, 0 if self.reflect else reach)
        if not last:
            self.held = 2 * reach
            buffer[:self.held] = buffer[self.filled - self.held:self.filled].clone()     # the two may overlap
        return out.permute(0, 2, 3, 1).reshape(-1, self.channels)


def _depthwise(rows, weight, padding, bias=None):
    """Pads columns, never rows."""
    return F.conv2d(rows, weight, bias, padding=(0, padding), groups=len(weight))


def _depthwise_then_gelu(rows, weight, padding):
    return F.gelu(_depthwise(rows, weight, padding))


def _fused_depthwise_gelu(rows, weight, padding):
    return torch.ops.mkldnn._convolution_pointwise(rows, weight, None, [0, padding], [1, 1], [1, 1], len(weight),
                                                   "gelu", [], "none")


@functools.cache
def depthwise_gelu():
    """A depthwise convolution that ends in GELU: one pass in oneDNN where this PyTorch can, else two.

    The operator is one of those that ``torch.compile`` emits and no public function reaches, so it is tried before it is
    trusted. It takes a fifth off the feed-forward's gate.
    """
    generator = torch.Generator().manual_seed(0)
    rows = torch.randn(1, 16, 3, 4, generator=generator).contiguous(memory_format=torch.channels_last)
    weight = torch.randn(16, 1, 3, 3, generator=generator)
    try:
        if torch.allclose(_fused_depthwise_gelu(rows, weight, 1), _depthwise_then_gelu(rows, weight, 1), atol=1e-4):
            return _fused_depthwise_gelu
    except (AttributeError, RuntimeError, TypeError):        # no oneDNN, or another signature
        pass
    return _depthwise_then_gelu


STRIPS = {TransformerBlock: StripTransformer, GatedBlock: StripGated}


def _norm(norm):
    return norm.weight.detach(), norm.bias.detach()


def _matrix(conv):
    """The weight of a 1x1 convolution as the matrix (in, out) that pixels in rows are multiplied with."""
    return conv.weight.detach()[:, :, 0, 0].t().contiguous()
