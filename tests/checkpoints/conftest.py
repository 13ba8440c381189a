"""Foreign networks as plain functions, written from ``docs/formats.md`` alone.

A :class:`Plain` gives a function its parameters by name and draws those that it has not met, so one
function is both the layout, keys and shapes, and the arithmetic. Keyword arguments with defaults
are the details that change the numbers; the tests also give them wrong.
"""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor


class Plain:
    """Parameters by name, drawn at first use."""

    def __init__(self, seed: int = 0) -> None:
        self.w: dict[str, Tensor] = {}
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, key: str, *shape: int, about: float = 0.0) -> Tensor:
        if key not in self.w:
            fan_in = math.prod(shape[1:]) if len(shape) > 1 else 25
            drawn = torch.randn(shape, generator=self.generator)
            self.w[key] = about + drawn / fan_in**0.5
        assert self.w[key].shape == shape, key
        return self.w[key]

    def linear(self, x: Tensor, key: str, out: int, bias: bool = True) -> Tensor:
        weight = self(f"{key}.weight", out, x.shape[-1])
        return F.linear(x, weight, self(f"{key}.bias", out) if bias else None)

    def conv(self, x: Tensor, key: str, out: int, size: int = 3, stride: int = 1, pad=None):
        weight = self(f"{key}.weight", out, x.shape[1], size, size)
        bias = self(f"{key}.bias", out)
        return F.conv2d(x, weight, bias, stride, size // 2 if pad is None else pad)

    def norm(self, x: Tensor, key: str, groups: int, eps: float) -> Tensor:
        weight = self(f"{key}.weight", x.shape[1], about=1.0)
        n, c, *rest = x.shape
        g = x.reshape(n, groups, -1)
        g = (g - g.mean(-1, keepdim=True)) / (g.var(-1, correction=0, keepdim=True) + eps).sqrt()
        bias = self(f"{key}.bias", c)
        return g.reshape(n, c, *rest) * weight[:, None, None] + bias[:, None, None]


def sinusoids(t: Tensor, dim: int, divisor: float, sine_first: bool) -> Tensor:
    half = dim // 2
    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half) / divisor)
    parts = [angles.sin(), angles.cos()]
    return torch.cat(parts if sine_first else parts[::-1], dim=1)


def softmax_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Of (N, heads, channels, pixels)."""
    scores = q.transpose(-1, -2) @ k / q.shape[-2] ** 0.5
    return v @ scores.softmax(-1).transpose(-1, -2)


def official(
    p: Plain,
    x: Tensor,
    t: Tensor,
    *,
    ch: int = 32,
    mult: tuple[int, ...] = (1, 2),
    blocks: int = 2,
    attends: tuple[int, ...] = (1,),
    eps: float = 1e-6,
    sine_first: bool = True,
    divisor_less: int = 1,
    pad: tuple[int, ...] = (0, 1, 0, 1),
) -> Tensor:
    """Section 2."""
    temb = sinusoids(t, ch, ch // 2 - divisor_less, sine_first)
    temb = p.linear(F.silu(p.linear(temb, "temb.dense.0", 4 * ch)), "temb.dense.1", 4 * ch)

    def block(x: Tensor, key: str, out: int) -> Tensor:
        h = p.conv(F.silu(p.norm(x, f"{key}.norm1", 32, eps)), f"{key}.conv1", out)
        h = h + p.linear(F.silu(temb), f"{key}.temb_proj", out)[:, :, None, None]
        h = p.conv(F.silu(p.norm(h, f"{key}.norm2", 32, eps)), f"{key}.conv2", out)
        return h + (x if x.shape[1] == out else p.conv(x, f"{key}.nin_shortcut", out, 1))

    def attention(x: Tensor, key: str) -> Tensor:
        h = p.norm(x, f"{key}.norm", 32, eps)
        q, k, v = (p.conv(h, f"{key}.{part}", x.shape[1], 1).flatten(2) for part in "qkv")
        return x + p.conv(softmax_attention(q, k, v).view_as(x), f"{key}.proj_out", x.shape[1], 1)

    h = p.conv(x, "conv_in", ch)
    skips = [h]
    for level, m in enumerate(mult):
        for i in range(blocks):
            h = block(h, f"down.{level}.block.{i}", m * ch)
            if level in attends:
                h = attention(h, f"down.{level}.attn.{i}")
            skips.append(h)
        if level < len(mult) - 1:
            h = p.conv(F.pad(h, pad), f"down.{level}.downsample.conv", m * ch, stride=2, pad=0)
            skips.append(h)
    h = block(h, "mid.block_1", h.shape[1])
    h = block(attention(h, "mid.attn_1"), "mid.block_2", h.shape[1])
    for level, m in reversed([*enumerate(mult)]):
        for i in range(blocks + 1):
            h = block(torch.cat([h, skips.pop()], 1), f"up.{level}.block.{i}", m * ch)
            if level in attends:
                h = attention(h, f"up.{level}.attn.{i}")
        if level > 0:
            h = p.conv(
                h.repeat_interleave(2, 2).repeat_interleave(2, 3),
                f"up.{level}.upsample.conv",
                m * ch,
            )
    return p.conv(F.silu(p.norm(h, "norm_out", 32, eps)), "conv_out", x.shape[1])


OPENAI = SimpleNamespace(
    down="input_blocks", up="output_blocks", norm1="in_layers.0", conv1="in_layers.2",
    time="emb_layers.1", norm2="out_layers.0", conv2="out_layers.3", skip="skip_connection",
    proj="proj_out", dims=1, bias=True,
)  # fmt: skip
NOTEBOOK = SimpleNamespace(
    down="down_blocks", up="up_blocks", norm1="conv1.0", conv1="conv1.2",
    time="time_emb.1", norm2="conv2.0", conv2="conv2.3", skip="shortcut",
    proj="proj", dims=2, bias=False,
)  # fmt: skip


def openai(
    p: Plain,
    x: Tensor,
    t: Tensor,
    y: Tensor | None = None,
    *,
    names: SimpleNamespace = OPENAI,
    ch: int = 32,
    mult: tuple[float, ...] = (1, 2),
    blocks: int = 1,
    attends: tuple[int, ...] = (1,),
    heads: int | None = 4,
    head_channels: int = 32,
    whole: bool = False,
    scale_shift: bool = True,
    residual: bool = False,
    classes: int | None = None,
    out: int | None = None,
    eps: float = 1e-5,
    sine_first: bool = False,
    divisor_less: int = 0,
    time_scale: float = 1.0,
) -> Tensor:
    """Sections 3 to 5."""
    emb = sinusoids(t * time_scale, ch, ch // 2 - divisor_less, sine_first)
    emb = p.linear(F.silu(p.linear(emb, "time_embed.0", 4 * ch)), "time_embed.2", 4 * ch)
    if classes is not None:
        emb = emb + p("label_emb.weight", classes, 4 * ch)[y]

    def block(x: Tensor, key: str, out: int, resample: str = "") -> Tensor:
        h = F.silu(p.norm(x, f"{key}.{names.norm1}", 32, eps))
        if resample == "down":
            h, x = F.avg_pool2d(h, 2), F.avg_pool2d(x, 2)
        elif resample == "up":
            h, x = double(h), double(x)
        h = p.conv(h, f"{key}.{names.conv1}", out)
        time = p.linear(F.silu(emb), f"{key}.{names.time}", out * (1 + scale_shift))[
            ..., None, None
        ]
        if scale_shift:
            scale, shift = time[:, :out], time[:, out:]
            h = p.norm(h, f"{key}.{names.norm2}", 32, eps) * (1 + scale) + shift
        else:
            h = p.norm(h + time, f"{key}.{names.norm2}", 32, eps)
        h = p.conv(F.silu(h), f"{key}.{names.conv2}", out)
        return h + (x if x.shape[1] == out else p.conv(x, f"{key}.{names.skip}", out, 1))

    def point(x: Tensor, key: str, out: int, bias: bool) -> Tensor:
        weight = p(f"{key}.weight", out, x.shape[1], *(1,) * names.dims)
        y = torch.einsum("oi,nip->nop", weight.flatten(1), x)
        return y + p(f"{key}.bias", out)[:, None] if bias else y

    def attention(x: Tensor, key: str) -> Tensor:
        n, c, height, width = x.shape
        h = p.norm(x, f"{key}.norm", 32, eps).flatten(2)
        qkv = point(h, f"{key}.qkv", 3 * c, names.bias)
        many = heads or c // head_channels
        if whole:
            q, k, v = qkv.view(n, 3, many, c // many, -1).unbind(1)
        else:
            q, k, v = qkv.view(n, many, 3, c // many, -1).unbind(2)
        h = softmax_attention(q, k, v).reshape(n, c, height * width)
        return x + point(h, f"{key}.{names.proj}", c, True).view_as(x)

    def double(x: Tensor) -> Tensor:
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    widths = [int(m * ch) for m in mult]
    h = p.conv(x, f"{names.down}.0.0", widths[0])
    skips = [h]
    for level, width in enumerate(widths):
        for _ in range(blocks):
            key = f"{names.down}.{len(skips)}"
            h = block(h, f"{key}.0", width)
            if level in attends:
                h = attention(h, f"{key}.1")
            skips.append(h)
        if level < len(mult) - 1:
            key = f"{names.down}.{len(skips)}.0"
            h = (
                block(h, key, width, "down")
                if residual
                else p.conv(h, f"{key}.op", width, stride=2)
            )
            skips.append(h)
    h = block(h, "middle_block.0", widths[-1])
    h = block(attention(h, "middle_block.1"), "middle_block.2", widths[-1])
    n = 0
    for level, width in reversed([*enumerate(widths)]):
        for i in range(blocks + 1):
            h = block(torch.cat([h, skips.pop()], 1), f"{names.up}.{n}.0", width)
            if level in attends:
                h = attention(h, f"{names.up}.{n}.1")
            if level > 0 and i == blocks:
                key = f"{names.up}.{n}.{1 + (level in attends)}"
                h = (
                    block(h, key, width, "up")
                    if residual
                    else p.conv(double(h), f"{key}.conv", width)
                )
            n += 1
    return p.conv(F.silu(p.norm(h, "out.0", 32, eps)), "out.2", out or x.shape[1])


def lucid(
    p: Plain,
    x: Tensor,
    t: Tensor,
    *,
    dim: int = 16,
    mult: tuple[int, ...] = (1, 2),
    full: tuple[bool, ...] = (False, True),
    heads: int = 2,
    width: int = 8,
    memory: int = 4,
    rms: bool = True,
    out: int | None = None,
    sine_first: bool = True,
    divisor_less: int = 1,
    exact_gelu: bool = True,
    linear_scale: bool = True,
) -> Tensor:
    """Section 6."""
    time = p.linear(sinusoids(t, dim, dim // 2 - divisor_less, sine_first), "time_mlp.1", 4 * dim)
    time = p.linear(
        F.gelu(time, approximate="none" if exact_gelu else "tanh"), "time_mlp.3", 4 * dim
    )

    def rms_norm(x: Tensor, key: str) -> Tensor:
        c = x.shape[1]
        return x / x.square().mean(1, keepdim=True).sqrt() * p(f"{key}.g", 1, c, 1, 1, about=1.0)

    def block(x: Tensor, key: str, out: int, told: Tensor | None = None) -> Tensor:
        h = p.conv(x, f"{key}.proj", out)
        h = rms_norm(h, f"{key}.norm") if rms else p.norm(h, f"{key}.norm", 8, 1e-5)
        if told is not None:
            h = h * (told[:, :out, None, None] + 1) + told[:, out:, None, None]
        return F.silu(h)

    def resnet(x: Tensor, key: str, out: int) -> Tensor:
        told = p.linear(F.silu(time), f"{key}.mlp.1", 2 * out)
        h = block(block(x, f"{key}.block1", out, told), f"{key}.block2", out)
        return h + (x if x.shape[1] == out else p.conv(x, f"{key}.res_conv", out, 1))

    def attention(x: Tensor, key: str, softmax: bool) -> Tensor:
        n, c, height, breadth = x.shape
        hidden = heads * width
        h = rms_norm(x, f"{key}.norm").flatten(2)
        qkv = p(f"{key}.to_qkv.weight", 3 * hidden, c, 1, 1).flatten(1) @ h
        q, k, v = qkv.view(n, 3, heads, width, -1).unbind(1)
        if softmax:
            learned = p(f"{key}.mem_kv", 2, heads, memory, width).transpose(-1, -2)
        else:
            learned = p(f"{key}.mem_kv", 2, heads, width, memory)
        k, v = (
            torch.cat([m.expand(n, -1, -1, -1), z], -1)
            for m, z in zip(learned, (k, v), strict=True)
        )
        if softmax:
            h = softmax_attention(q, k, v).reshape(n, hidden, height, breadth)
            return x + p.conv(h, f"{key}.to_out", c, 1)
        q = q.softmax(-2) / (width**0.5 if linear_scale else 1)
        context = torch.einsum("nhdp,nhep->nhde", k.softmax(-1), v)
        h = torch.einsum("nhde,nhdp->nhep", context, q).reshape(n, hidden, height, breadth)
        return x + rms_norm(p.conv(h, f"{key}.to_out.0", c, 1), f"{key}.to_out.1")

    widths = [dim, *(m * dim for m in mult)]
    h = first = p.conv(x, "init_conv", dim, 7)
    skips = []
    for i in range(len(mult)):
        h = resnet(h, f"downs.{i}.0", widths[i])
        skips.append(h)
        h = attention(resnet(h, f"downs.{i}.1", widths[i]), f"downs.{i}.2", full[i])
        skips.append(h)
        if i < len(mult) - 1:
            n, c, height, breadth = h.shape
            h = h.view(n, c, height // 2, 2, breadth // 2, 2).permute(0, 1, 3, 5, 2, 4)
            h = h.reshape(n, 4 * c, height // 2, breadth // 2)
            h = p.conv(h, f"downs.{i}.3.1", widths[i + 1], 1)
        else:
            h = p.conv(h, f"downs.{i}.3", widths[i + 1])
    h = attention(resnet(h, "mid_block1", widths[-1]), "mid_attn", True)
    h = resnet(h, "mid_block2", widths[-1])
    for n, i in enumerate(reversed(range(len(mult)))):
        h = resnet(torch.cat([h, skips.pop()], 1), f"ups.{n}.0", widths[i + 1])
        h = resnet(torch.cat([h, skips.pop()], 1), f"ups.{n}.1", widths[i + 1])
        h = attention(h, f"ups.{n}.2", full[i])
        if i > 0:
            h = h.repeat_interleave(2, 2).repeat_interleave(2, 3)
        h = p.conv(h, f"ups.{n}.3.1" if i > 0 else f"ups.{n}.3", widths[i])
    h = resnet(torch.cat([h, first], 1), "final_res_block", dim)
    return p.conv(h, "final_conv", out or x.shape[1], 1)


def randn(*shape: int, seed: int = 1) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def plain() -> SimpleNamespace:
    """The plain functions and what they need."""
    return SimpleNamespace(
        Plain=Plain, official=official, openai=openai, lucid=lucid, OPENAI=OPENAI,
        NOTEBOOK=NOTEBOOK, randn=randn,
    )  # fmt: skip
