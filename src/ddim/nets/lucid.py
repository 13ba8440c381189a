"""The Unet of denoising-diffusion-pytorch, versions 1.9 to 2.3, under its own parameter names.

It cannot be written as a ``UNet2DModel``: most of its attention is linear in the number of pixels,
keys and values begin with a few learned ones, blocks normalise after the convolution, and the first
convolution's output is joined again at the end.

References:
    Wang, *Denoising Diffusion Probabilistic Model, in Pytorch*, 2020,
    https://github.com/lucidrains/denoising-diffusion-pytorch.
    Katharopoulos and others, *Transformers are RNNs: Fast Autoregressive Transformers with Linear
    Attention*, 2020, https://arxiv.org/abs/2006.16236.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddim.base.errors import InputError
from ddim.nets.unet import silu, timestep_embedding

__all__ = ["LucidConfig", "LucidUnet"]


_MOST = 2**16
"""Of any number of the architecture."""


@dataclasses.dataclass(frozen=True)
class LucidConfig:
    """The architecture, as its tensors show it.

    Attributes:
        channels: of an image.
        out_channels: the same, or twice as many with a learned variance.
        dim: number of sinusoidal features of the time.
        widths: channels after the first convolution and after each level.
        full: for each level, whether its attention is softmax attention instead of linear.
        heads: for each level, attention heads; the last also serves the middle.
        head_channels: for each level, channels of a head.
        memory: learned keys and values that attention begins with.
        group_norm: groups of the blocks' normalisation; None for RMS normalisation (from 2.0).

    Raises:
        InputError: widths that the groups do not divide, or numbers that no network has.
    """

    channels: int
    out_channels: int
    dim: int
    widths: tuple[int, ...]
    full: tuple[bool, ...]
    heads: tuple[int, ...]
    head_channels: tuple[int, ...]
    memory: int = 4
    group_norm: int | None = None

    def __post_init__(self) -> None:
        counts = (self.channels, self.out_channels, self.dim // 4, self.memory)
        for value in (*counts, *self.widths, *self.heads, *self.head_channels):
            if not 1 <= value <= _MOST:
                raise InputError(f"a width, or a number of heads or features, is {value}")
        for width in self.widths:
            if self.group_norm is not None and width % self.group_norm:
                raise InputError(f"width {width} is not a multiple of {self.group_norm} groups")


class _RMSNorm(nn.Module):
    """Divide by the root mean square over the channels, then scale each."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.g = nn.Parameter(torch.ones(1, channels, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.normalize(x, dim=1) * self.g * x.shape[1] ** 0.5


class _Block(nn.Module):
    """Convolution, normalisation, scale and shift, SiLU."""

    def __init__(self, channels_in: int, channels: int, groups: int | None) -> None:
        super().__init__()
        self.proj = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.norm = nn.GroupNorm(groups, channels) if groups else _RMSNorm(channels)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        x = self.norm(self.proj(x))
        if time is not None:
            scale, shift = time[:, :, None, None].chunk(2, dim=1)
            x = x * (scale + 1) + shift
        return silu(x)


class _Resnet(nn.Module):
    """Two blocks, the first told the time, beside a shortcut."""

    def __init__(self, channels_in: int, channels: int, config: LucidConfig) -> None:
        super().__init__()
        self.mlp = nn.Sequential(nn.Identity(), nn.Linear(4 * config.dim, 2 * channels))
        self.block1 = _Block(channels_in, channels, config.group_norm)
        self.block2 = _Block(channels, channels, config.group_norm)
        same = channels_in == channels
        self.res_conv = nn.Identity() if same else nn.Conv2d(channels_in, channels, 1)

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        return self.block2(self.block1(x, self.mlp(silu(time)))) + self.res_conv(x)


class _Attention(nn.Module):
    """Softmax attention over the pixels and a few learned keys and values."""

    def __init__(self, channels: int, heads: int, width: int, memory: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = _RMSNorm(channels)
        self.mem_kv = nn.Parameter(torch.zeros(2, heads, memory, width))
        self.to_qkv = nn.Conv2d(channels, 3 * heads * width, 1, bias=False)
        self.to_out = nn.Conv2d(heads * width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        parts = self.to_qkv(self.norm(x)).view(n, 3, self.heads, -1, height * width)
        query, key, value = parts.transpose(-1, -2).unbind(1)
        key, value = (
            torch.cat([learned.expand(n, -1, -1, -1), own], dim=-2)
            for learned, own in zip(self.mem_kv, (key, value), strict=True)
        )
        out = F.scaled_dot_product_attention(query, key, value)
        return x + self.to_out(out.transpose(-1, -2).reshape(n, -1, height, width))


class _LinearAttention(nn.Module):
    """Attention whose softmax is taken over queries' channels and keys' pixels separately."""

    def __init__(self, channels: int, heads: int, width: int, memory: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, width**-0.5
        self.norm = _RMSNorm(channels)
        self.mem_kv = nn.Parameter(torch.zeros(2, heads, width, memory))
        self.to_qkv = nn.Conv2d(channels, 3 * heads * width, 1, bias=False)
        self.to_out = nn.Sequential(nn.Conv2d(heads * width, channels, 1), _RMSNorm(channels))

    def forward(self, x: Tensor) -> Tensor:
        n, _, height, width = x.shape
        parts = self.to_qkv(self.norm(x)).view(n, 3, self.heads, -1, height * width)
        query, key, value = parts.unbind(1)
        key, value = (
            torch.cat([learned.expand(n, -1, -1, -1), own], dim=-1)
            for learned, own in zip(self.mem_kv, (key, value), strict=True)
        )
        query = query.softmax(dim=-2) * self.scale
        context = key.softmax(dim=-1) @ value.transpose(-1, -2)
        out = context.transpose(-1, -2) @ query
        return x + self.to_out(out.reshape(n, -1, height, width))


class LucidUnet(nn.Module):
    """Noise-prediction network of denoising-diffusion-pytorch.

    Args:
        config: the architecture.

    Example:
        >>> config = LucidConfig(3, 3, 8, (8, 8, 16), (False, True), (2, 2), (4, 4))
        >>> LucidUnet(config)(torch.zeros(2, 3, 8, 8), torch.tensor([0, 5])).shape
        torch.Size([2, 3, 8, 8])
    """

    beyond_diffusers = (
        "linear attention",
        "learned keys and values in attention",
        "scale and shift after each first normalisation of a convolution's output",
    )
    """What ``UNet2DModel`` cannot express of it."""

    def __init__(self, config: LucidConfig) -> None:
        super().__init__()
        self.config = config
        widths, dim = config.widths, config.dim
        self.init_conv = nn.Conv2d(config.channels, widths[0], 7, padding=3)
        self.time_mlp = nn.Sequential(
            nn.Identity(), nn.Linear(dim, 4 * dim), nn.GELU(), nn.Linear(4 * dim, 4 * dim)
        )
        levels = len(widths) - 1
        self.downs = nn.ModuleList()
        self.ups = nn.ModuleList()
        for i in range(levels):
            before, after, last = widths[i], widths[i + 1], i == levels - 1
            down = nn.Conv2d(before, after, 3, padding=1)
            if not last:
                down = nn.Sequential(nn.PixelUnshuffle(2), nn.Conv2d(4 * before, after, 1))
            resnets = [_Resnet(before, before, config) for _ in range(2)]
            self.downs.append(nn.ModuleList([*resnets, self._attention(i, before), down]))
        for i in reversed(range(levels)):
            before, after = widths[i], widths[i + 1]
            up = nn.Conv2d(after, before, 3, padding=1)
            if i > 0:
                up = nn.Sequential(nn.Upsample(scale_factor=2), up)
            resnets = [_Resnet(after + before, after, config) for _ in range(2)]
            self.ups.append(nn.ModuleList([*resnets, self._attention(i, after), up]))
        self.mid_block1 = _Resnet(widths[-1], widths[-1], config)
        heads, width = config.heads[-1], config.head_channels[-1]
        self.mid_attn = _Attention(widths[-1], heads, width, config.memory)
        self.mid_block2 = _Resnet(widths[-1], widths[-1], config)
        self.final_res_block = _Resnet(2 * widths[0], widths[0], config)
        self.final_conv = nn.Conv2d(widths[0], config.out_channels, 1)

    @staticmethod
    def _levels(levels: nn.ModuleList) -> Iterator[list[nn.Module]]:
        return (list(level.children()) for level in levels)

    def _attention(self, level: int, channels: int) -> nn.Module:
        config = self.config
        kind = _Attention if config.full[level] else _LinearAttention
        return kind(channels, config.heads[level], config.head_channels[level], config.memory)

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        """Predict for noisy images.

        Args:
            x: noisy images, shape (N, channels, H, W); H and W divisible by 2^(levels - 1).
            t: times as the network was trained on them, shape (N,).

        Returns:
            shape (N, out_channels, H, W).
        """
        features = timestep_embedding(t, self.config.dim).to(self.init_conv.weight.dtype)
        time = self.time_mlp(features)
        first = x = self.init_conv(x)
        skips = []
        for block1, block2, attention, down in self._levels(self.downs):
            x = block1(x, time)
            skips.append(x)
            x = attention(block2(x, time))
            skips.append(x)
            x = down(x)
        x = self.mid_block2(self.mid_attn(self.mid_block1(x, time)), time)
        for block1, block2, attention, up in self._levels(self.ups):
            x = block1(torch.cat([x, skips.pop()], dim=1), time)
            x = block2(torch.cat([x, skips.pop()], dim=1), time)
            x = up(attention(x))
        return self.final_conv(self.final_res_block(torch.cat([x, first], dim=1), time))
