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

import torch
import torch.nn.functional as F
from torch import nn

from .models.layers import TransformerBlock

STRIP_BYTES = 4 << 20                        # of the widest intermediate of a strip: measured, flat from 2 to 8 MB


def fast(model, dtype=torch.float32):
    """A network for inference on CPUs that shares ``model``'s weights (bar those it must repack) and equals it to rounding.

    ``dtype``: ``torch.float32``, or ``torch.bfloat16`` for what lies between the first and the last convolution; these
    two and the global residual stay float32, because a bfloat16 output costs quality. Give float32 images in either
    case. The copy is a snapshot: later changes of ``model``'s weights may not reach it.
    """
    shared = {} if dtype != torch.float32 else {id(t): t for t in [*model.parameters(), *model.buffers()]}
    quick = copy.deepcopy(model, shared).eval().requires_grad_(False) if shared == {} else copy.deepcopy(model, shared).eval()
    if dtype != torch.float32:
        ends = quick.embed, quick.output
        quick.embed = quick.output = nn.Identity()
        quick.to(dtype)
        quick.embed, quick.output = (Cast(ends[0], torch.float32, dtype), Cast(ends[1], torch.float32, torch.float32))
    _swap(quick)
    return quick


def _swap(module):
    for name, child in module.named_children():
        if type(child) in STRIPS:
            setattr(module, name, STRIPS[type(child)](child))
        else:
            _swap(child)


class Cast(nn.Module):
    """``inner`` run in one dtype, its result handed on in another."""

    def __init__(self, inner, inside, outside):
        super().__init__()
        self.inner, self.inside, self.outside = inner, inside, outside

    def forward(self, x):
        return self.inner(x.to(self.inside)).to(self.outside)


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
        gate, value = _matrix(ffn.project_in).chunk(2, dim=1)
        self.to_hidden = torch.cat([F.pad(gate, (0, pad)), F.pad(value, (0, pad))], dim=1)
        gate, value = ffn.depthwise.weight.detach().chunk(2)
        grow = (0, 0) * 3 + (0, pad)
        self.hidden_depthwise = torch.cat([F.pad(gate, grow), F.pad(value, grow)])
        self.from_hidden = F.pad(_matrix(ffn.project_out), (0, 0, 0, pad))

    def forward(self, x):
        pixels = x.permute(0, 2, 3, 1).contiguous()
        out = torch.empty_like(pixels)
        for image, result in zip(pixels, out):
            self._mix(image, self._attention(image), result)
        return out.permute(0, 3, 1, 2)

    def _strips(self, image):
        height, width, _ = image.shape
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
            squares += (qk * qk).sum(0)
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
        window = RollingDepthwise(self.hidden_depthwise, image, rows + 1)
        flat, flat_result = image.view(-1, self.channels), result.view(-1, self.channels)
        attended = done = 0                  # pixels that the attention, and the feed-forward, have finished
        waiting = flat[:0]
        for i, strip in enumerate(strips, 1):
            last = i == len(strips)
            torch.mm(self._normed(strip, self.norm1), self.to_v, out=v_window.room(len(strip)))
            v = v_window.advance(last)
            y = torch.addmm(flat[attended:attended + len(v)], v, attention)
            attended += len(v)
            torch.mm(self._normed(y, self.norm2), self.to_hidden, out=window.room(len(y) // image.shape[1]))
            gate, value = window.advance(last).chunk(2, dim=1)
            waiting = torch.cat([waiting, y])
            gated = F.gelu(gate).mul_(value)
            torch.addmm(waiting[:len(gated)], gated, self.from_hidden, out=flat_result[done:done + len(gated)])
            waiting = waiting[len(gated):]
            done += len(gated)

    def _normed(self, rows, norm):
        return F.layer_norm(rows, (self.channels,), *norm, 1e-5).view(-1, self.channels)


class RollingDepthwise:
    """A depthwise 3x3 convolution, zero beyond the image, over rows that arrive from top to bottom.

    ``room(n)`` is where the next n rows are to be written, as a matrix (n * width, channels); ``advance(last)`` convolves
    what has arrived and returns the finished rows in the same form: one row late, until the last.
    """

    def __init__(self, weight, image, rows):
        self.weight = weight
        self.width, self.channels = image.shape[1], len(weight)
        self.buffer = image.new_empty(rows + 3, self.width, self.channels)
        self.buffer[0] = 0
        self.held, self.filled = 1, 1

    def room(self, rows):
        self.filled = self.held + rows
        return self.buffer[self.held:self.filled].view(-1, self.channels)

    def advance(self, last):
        if last:
            self.buffer[self.filled] = 0
            self.filled += 1
        rows = self.buffer[:self.filled][None].permute(0, 3, 1, 2)    # in this order PyTorch sees channels-last
        out = F.conv2d(rows, self.weight, padding=(0, 1), groups=self.channels)
        if not last:
            self.buffer[:2] = self.buffer[self.filled - 2:self.filled]
            self.held = 2
        return out.permute(0, 2, 3, 1).reshape(-1, self.channels)


STRIPS = {TransformerBlock: StripTransformer}


def _norm(norm):
    return norm.weight.detach(), norm.bias.detach()


def _matrix(conv):
    """The weight of a 1x1 convolution as the matrix (in, out) that pixels in rows are multiplied with."""
    return conv.weight.detach()[:, :, 0, 0].t().contiguous()
