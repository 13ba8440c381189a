"""The UNet of DDPM, with the parameter names and the arithmetic of diffusers' ``UNet2DModel``.

A state dict moves between the two without renaming. What differs is how the forward pass is
organised: everything that depends on the time and the class label alone is one call
(:meth:`UNet.embed` and :meth:`UNet.condition`), whose result can be kept for a whole sampling
run, and query, key and value are one matrix product.

References:
    Ho, Jain, Abbeel, *Denoising Diffusion Probabilistic Models*, 2020, appendix B,
    https://arxiv.org/abs/2006.11239.
    Dhariwal, Nichol, *Diffusion Models Beat GANs on Image Synthesis*, 2021 (scale-shift
    normalisation, residual up- and downsampling), https://arxiv.org/abs/2105.05233.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, TypeGuard

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddim.base.errors import InputError, quoted
from ddim.base.records import check_fields, record

__all__ = ["UNet", "UNetConfig", "count_flops", "in_parts", "timestep_embedding"]

_DOWN = ("DownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D")
# More than any network that was published, by far.
_MOST_BLOCKS, _MOST_PARAMETERS = 500, 10_000_000_000
MOST_NUMBERS = 2**28
"""Of one image, channels × height × width."""
_UP = ("UpBlock2D", "AttnUpBlock2D", "ResnetUpsampleBlock2D")


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The fields of diffusers' ``unet/config.json``, with its defaults made explicit.

    Only what checkpoints of the DDPM family use is accepted: positional time embeddings, the
    plain, attention and residual-resampling blocks, SiLU. The last three fields are not diffusers';
    :attr:`beyond_diffusers` says which of them a network uses.

    Attributes:
        attention_heads: as many heads at every width, instead of as many channels a head.
        time_features: number of sinusoidal features, where it is not the first width.
        time_scale: what times are multiplied by before they are embedded.

    Raises:
        InputError: for a block type, an activation or an embedding that is not supported, or
            channel counts that the group normalisation cannot divide.
    """

    sample_size: int = 32
    in_channels: int = 3
    out_channels: int = 3
    center_input_sample: bool = False
    time_embedding_type: str = "positional"
    time_embedding_dim: int | None = None
    freq_shift: float = 0
    flip_sin_to_cos: bool = True
    down_block_types: tuple[str, ...] = ("DownBlock2D", "AttnDownBlock2D")
    mid_block_type: str | None = "UNetMidBlock2D"
    up_block_types: tuple[str, ...] = ("AttnUpBlock2D", "UpBlock2D")
    block_out_channels: tuple[int, ...] = (64, 128)
    layers_per_block: int = 2
    mid_block_scale_factor: float = 1
    downsample_padding: int = 1
    downsample_type: str = "conv"
    upsample_type: str = "conv"
    dropout: float = 0.0
    act_fn: str = "silu"
    attention_head_dim: int | None = 8
    norm_num_groups: int = 32
    attn_norm_num_groups: int | None = None
    norm_eps: float = 1e-5
    resnet_time_scale_shift: str = "default"
    add_attention: bool = True
    class_embed_type: str | None = None
    num_class_embeds: int | None = None
    num_train_timesteps: int | None = None
    attention_heads: int | None = None
    time_features: int | None = None
    time_scale: float = 1.0

    def __post_init__(self) -> None:
        for name in ("down_block_types", "up_block_types", "block_out_channels"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        check_fields(self)
        levels = len(self.block_out_channels)
        if not 0 < levels == len(self.down_block_types) == len(self.up_block_types):
            raise InputError(
                f"a UNet needs as many down_block_types ({len(self.down_block_types)}) and "
                f"up_block_types ({len(self.up_block_types)}) as block_out_channels ({levels})"
            )
        self._check_numbers()
        _one_of("time_embedding_type", self.time_embedding_type, ("positional",))
        _one_of("act_fn", self.act_fn, ("silu", "swish"))
        _one_of("resnet_time_scale_shift", self.resnet_time_scale_shift, ("default", "scale_shift"))
        _one_of("class_embed_type", self.class_embed_type, (None, "timestep", "identity"))
        _one_of("mid_block_type", self.mid_block_type, (None, "UNetMidBlock2D"))
        _one_of("downsample_type", self.downsample_type, ("conv", "resnet"))
        _one_of("upsample_type", self.upsample_type, ("conv", "resnet"))
        for name in self.down_block_types:
            _one_of("down_block_types", name, _DOWN)
        for name in self.up_block_types:
            _one_of("up_block_types", name, _UP)
        self._check_widths()
        self._check_size()

    def _check_numbers(self) -> None:
        counts = ("sample_size", "in_channels", "out_channels", "layers_per_block")
        may_be_none = ("time_embedding_dim", "attention_head_dim", "attn_norm_num_groups")
        more = ("num_class_embeds", "attention_heads", "time_features", "norm_num_groups")
        for name in (*counts, *may_be_none, *more, "block_out_channels"):
            values = getattr(self, name)
            for value in values if isinstance(values, tuple) else (values,):
                if value is not None and value < 1:
                    raise InputError(f"{name} must be a whole number of at least 1, not {value}")
        for name in ("norm_eps", "mid_block_scale_factor"):
            if getattr(self, name) <= 0:
                raise InputError(f"{name} must be positive, not {getattr(self, name):g}")
        if not 0 <= self.dropout < 1:
            raise InputError(f"dropout must be in [0, 1), not {self.dropout:g}")
        _one_of("downsample_padding", self.downsample_padding, (0, 1))
        features = self.time_features or self.block_out_channels[0]
        if self.freq_shift >= max(features // 2, 1):  # frequencies are divided by the difference
            raise InputError(f"freq_shift {self.freq_shift:g} is half of {features} time features")

    def _check_widths(self) -> None:
        """What the channels must be divisible by."""
        widths = self.block_out_channels
        for channels in widths:
            if channels % self.norm_num_groups:
                raise InputError(
                    f"block_out_channels {channels} is not a multiple of norm_num_groups "
                    f"{self.norm_num_groups}"
                )
        if widths[-1] % (self.attn_norm_num_groups or 1):
            raise InputError(
                f"block_out_channels {widths[-1]} is not a multiple of attn_norm_num_groups "
                f"{self.attn_norm_num_groups}"
            )
        attending = {widths[-1]} if self.mid_block_type and self.add_attention else set()
        for kind, channels in (
            *zip(self.down_block_types, widths, strict=True),
            *zip(self.up_block_types, reversed(widths), strict=True),
        ):
            attending |= {channels} if kind.startswith("Attn") else set()
        for channels in sorted(attending):
            if self.attention_heads is not None:
                if channels % self.attention_heads:
                    raise InputError(
                        f"block_out_channels {channels} cannot be split into attention_heads "
                        f"{self.attention_heads}"
                    )
            elif channels % (self.attention_head_dim or channels):
                raise InputError(
                    f"block_out_channels {channels} is not a multiple of attention_head_dim "
                    f"{self.attention_head_dim}"
                )

    def _check_size(self) -> None:
        """Refuse what no memory holds, before anything is made: numbers in a file cost nothing."""
        blocks = len(self.block_out_channels) * (2 * self.layers_per_block + 1)
        if blocks > _MOST_BLOCKS:
            raise InputError(
                f"layers_per_block {self.layers_per_block} makes {blocks:,} blocks, and no network "
                f"has more than {_MOST_BLOCKS:,}"
            )
        if self.parameters > _MOST_PARAMETERS:
            raise InputError(
                f"block_out_channels {quoted(list(self.block_out_channels))} and the rest make a "
                f"network of {self.parameters:,} parameters, and none has more than "
                f"{_MOST_PARAMETERS:,}"
            )
        numbers = max(self.in_channels, self.out_channels) * self.sample_size**2
        if numbers > MOST_NUMBERS:
            raise InputError(
                f"sample_size {self.sample_size} makes images of {numbers:,} numbers, and none has "
                f"more than {MOST_NUMBERS:,}"
            )

    @property
    def parameters(self) -> int:
        """How many parameters the network has, without making it."""
        widths, repeats = self.block_out_channels, self.layers_per_block
        first, last = widths[0], widths[-1]
        time = self.time_embedding_dim or 4 * first
        time_mlp = time * ((self.time_features or first) + 1) + time * (time + 1)

        def resnet(inward: int, channels: int) -> int:
            scale_shift = 2 if self.resnet_time_scale_shift == "scale_shift" else 1
            shortcut = channels * (inward + 1) if inward != channels else 0
            convolutions = channels * (9 * inward + 1) + channels * (9 * channels + 1)
            norms = 2 * inward + 2 * channels
            return convolutions + norms + scale_shift * channels * (time + 1) + shortcut

        def attention(channels: int, *, norm: bool = True) -> int:
            return 4 * channels * (channels + 1) + 2 * channels * norm

        def resample(kind: str, style: str, channels: int) -> int:
            if _residual_resampling(kind, style):
                return resnet(channels, channels)
            return channels * (9 * channels + 1)

        total = first * (9 * self.in_channels + 1) + self.out_channels * (9 * first + 1) + 2 * first
        total += time_mlp
        if self.class_embed_type == "timestep":
            total += time_mlp
        elif self.class_embed_type is None and self.num_class_embeds is not None:
            total += self.num_class_embeds * time
        for i, channels in enumerate(widths):
            before, last_level = widths[max(i - 1, 0)], i == len(widths) - 1
            after, down = channels if last_level else widths[i + 1], self.down_block_types[i]
            up = self.up_block_types[len(widths) - 1 - i]
            total += resnet(before, channels) + (repeats - 1) * resnet(channels, channels)
            # The way up begins with what is below, and ends with what the way down began with.
            total += resnet(after + channels, channels) + resnet(channels + before, channels)
            total += (repeats - 1) * resnet(2 * channels, channels)
            total += repeats * attention(channels) * down.startswith("Attn")
            total += (repeats + 1) * attention(channels) * up.startswith("Attn")
            total += 0 if last_level else resample(down, self.downsample_type, channels)
            total += 0 if i == 0 else resample(up, self.upsample_type, channels)
        if self.mid_block_type:
            norm = self.attn_norm_num_groups is not None
            norm = norm or self.resnet_time_scale_shift == "default"
            total += 2 * resnet(last, last) + attention(last, norm=norm) * self.add_attention
        return total

    @property
    def has_classes(self) -> bool:
        """Whether the network takes class labels."""
        return self.num_class_embeds is not None or self.class_embed_type is not None

    @property
    def beyond_diffusers(self) -> list[str]:
        """What ``UNet2DModel`` cannot express of this network; empty where it can all of it."""
        said = []
        if self.attention_heads is not None:
            said.append(f"{self.attention_heads} attention heads at every width")
        if self.time_features is not None:
            said.append(f"{self.time_features} time features, not the first width")
        if self.time_scale != 1:
            said.append(f"times multiplied by {self.time_scale:g}")
        return said

    @classmethod
    def from_json(cls, config: Mapping[str, Any]) -> UNetConfig:
        """Read a diffusers ``config.json``; keys that start with ``_`` are bookkeeping.

        Raises:
            InputError: a key that is not a field, or a value of another type, named.
        """
        values = {key: value for key, value in config.items() if not key.startswith("_")}
        size = values.get("sample_size", 0)
        if size is None:
            raise InputError("sample_size is null: write the size of the images there")
        if isinstance(size, list | tuple):
            if len(size) != 2 or size[0] != size[1]:
                raise InputError(f"sample_size {quoted(tuple(size))} is not square")
            values["sample_size"] = size[0]
        return record(cls, values)

    def to_json(self) -> dict[str, Any]:
        """The mapping that diffusers' ``UNet2DModel.from_config`` reads.

        Fields that diffusers does not have are there where they are used.
        """
        values = dataclasses.asdict(self)
        for name, absent in (("attention_heads", None), ("time_features", None), ("time_scale", 1)):
            if values[name] == absent:
                del values[name]
        return {key: list(v) if isinstance(v, tuple) else v for key, v in values.items()}


def _one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    if value not in allowed:
        raise InputError(f"{name} {quoted(value)} is not supported: it is one of {allowed}")


def timestep_embedding(
    t: Tensor, dim: int, *, flip_sin_to_cos: bool = False, freq_shift: float = 1
) -> Tensor:
    """Sinusoidal features of the time, ``[sin, cos]`` or, flipped, ``[cos, sin]``.

    The frequencies are 10000^(-i / (dim/2 - freq_shift)), i = 0..dim/2-1, in float32 as the
    networks were trained with (Ho et al. 2020; Vaswani et al. 2017, section 3.5).

    Args:
        t: times of any real dtype, shape (N,).
        dim: number of features; an odd one is padded with a zero.

    Returns:
        float32 of shape (N, dim).
    """
    half = dim // 2
    exponent = -math.log(10000) * torch.arange(half, dtype=torch.float32, device=t.device)
    angle = t[:, None].float() * torch.exp(exponent / (half - freq_shift))[None, :]
    parts = (angle.cos(), angle.sin()) if flip_sin_to_cos else (angle.sin(), angle.cos())
    return F.pad(torch.cat(parts, dim=-1), (0, dim % 2))


def silu(x: Tensor) -> Tensor:
    """x·sigmoid(x), to the same bits wherever in a batch an image stands.

    On a CPU torch computes what is left over after the last whole vector, at the end of a buffer or
    of a thread's share of it, by other code, which differs in the last bit. Where a share would end
    so, and only there, a form is used that has no such remainder, at twice the cost.
    """
    if x.device.type == "cpu" and not torch.is_grad_enabled():
        shares = min(torch.get_num_threads(), -(-x.numel() // _GRAIN))
        share = -(-x.numel() // shares)
        if share % _VECTORS or x.numel() % _VECTORS:
            return x / (torch.exp(-x) + 1)
    return F.silu(x)


# How torch divides elementwise work: at least this many elements a thread, and at most this many
# in one turn of the inner loop (two AVX-512 vectors of half precision).
_GRAIN = 32768
_VECTORS = 64


class _TimeMLP(nn.Module):
    def __init__(self, dim_in: int, dim: int) -> None:
        super().__init__()
        self.linear_1 = nn.Linear(dim_in, dim)
        self.linear_2 = nn.Linear(dim, dim)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear_2(silu(self.linear_1(features)))


class _Downsample(nn.Module):
    """Halve the resolution by a convolution; diffusers' name for it is ``conv``."""

    def __init__(self, channels: int, config: UNetConfig) -> None:
        super().__init__()
        padding = config.downsample_padding
        self.conv = nn.Conv2d(channels, channels, 3, stride=2, padding=padding)
        self.pad_after = padding == 0

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)) if self.pad_after else x)


class _Upsample(nn.Module):
    """Double the resolution, then convolve."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class _Resnet(nn.Module):
    """GroupNorm, SiLU, convolution, twice, with the time added (or as scale and shift) between."""

    def __init__(
        self,
        channels_in: int,
        channels: int,
        time_dim: int,
        config: UNetConfig,
        *,
        scale=1.0,
        resample="",
    ) -> None:
        super().__init__()
        groups, eps = config.norm_num_groups, config.norm_eps
        self.scale_shift = config.resnet_time_scale_shift == "scale_shift"
        self.norm1 = nn.GroupNorm(groups, channels_in, eps=eps)
        self.conv1 = nn.Conv2d(channels_in, channels, 3, padding=1)
        self.time_emb_proj = nn.Linear(time_dim, channels * (2 if self.scale_shift else 1))
        self.norm2 = nn.GroupNorm(groups, channels, eps=eps)
        self.dropout = nn.Dropout(config.dropout)
        self.conv2 = nn.Conv2d(channels, channels, 3, padding=1)
        self.conv_shortcut = (
            nn.Conv2d(channels_in, channels, 1) if channels_in != channels else None
        )
        self.output_scale_factor = scale
        self.resample = resample
        self.cond_slice = slice(0, 0)  # which columns of the condition are ours; the UNet sets it

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        h = silu(self.norm1(x))
        if self.resample == "up":
            x, h = (F.interpolate(z, scale_factor=2.0, mode="nearest") for z in (x, h))
        elif self.resample == "down":
            x, h = F.avg_pool2d(x, 2), F.avg_pool2d(h, 2)
        h = self.conv1(h)
        time = cond[:, self.cond_slice, None, None]
        if self.scale_shift:
            scale, shift = time.chunk(2, dim=1)
            h = self.norm2(h) * (1 + scale) + shift
        else:
            h = self.norm2(h + time)
        h = self.conv2(self.dropout(silu(h)))
        if self.conv_shortcut is not None:
            x = self.conv_shortcut(x)
        out = x + h
        return out if self.output_scale_factor == 1 else out / self.output_scale_factor


class _Attention(nn.Module):
    """Self-attention over the pixels, in heads of contiguous channels, with a residual."""

    def __init__(self, channels: int, config: UNetConfig, *, groups: int | None, scale=1.0) -> None:
        super().__init__()
        self.heads = config.attention_heads or channels // (config.attention_head_dim or channels)
        self.group_norm = nn.GroupNorm(groups, channels, eps=config.norm_eps) if groups else None
        self.to_q = nn.Linear(channels, channels)
        self.to_k = nn.Linear(channels, channels)
        self.to_v = nn.Linear(channels, channels)
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])
        self.rescale_output_factor = scale

    def forward(self, x: Tensor) -> Tensor:
        batch, channels, height, width = x.shape
        tokens = x if self.group_norm is None else self.group_norm(x)
        tokens = tokens.flatten(2).transpose(1, 2)
        weight = torch.cat([self.to_q.weight, self.to_k.weight, self.to_v.weight])
        bias = torch.cat([self.to_q.bias, self.to_k.bias, self.to_v.bias])
        qkv = F.linear(tokens, weight, bias)
        qkv = qkv.view(batch, -1, 3, self.heads, channels // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)
        attended = _attend(query, key, value)
        attended = self.to_out[0](attended.transpose(1, 2).reshape(batch, -1, channels))
        out = x + attended.transpose(1, 2).reshape(batch, channels, height, width)
        return out if self.rescale_output_factor == 1 else out / self.rescale_output_factor


def _attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """Attention; trained in bfloat16 on a CPU, over few pixels, by two products of its own.

    There the gradient through torch's kernel takes four to six times as long.
    """
    few = query.device.type == "cpu" and query.shape[-2] <= _FEW_TOKENS
    if few and query.dtype == torch.bfloat16 and torch.is_grad_enabled():
        scores = (query * query.shape[-1] ** -0.5) @ key.mT
        return scores.softmax(dim=-1).to(value.dtype) @ value
    return F.scaled_dot_product_attention(query, key, value)


_FEW_TOKENS = 64


class _Level(nn.Module):
    """The residual blocks of one resolution, with attention after each where asked for."""

    def __init__(
        self, kind: str, channels_in: list[int], channels: int, time_dim: int, config: UNetConfig
    ) -> None:
        super().__init__()
        self.resnets = nn.ModuleList(_Resnet(c, channels, time_dim, config) for c in channels_in)
        attends = kind.startswith("Attn")
        groups = config.norm_num_groups
        self.attentions = (
            nn.ModuleList(_Attention(channels, config, groups=groups) for _ in channels_in)
            if attends
            else None
        )

    def layer(self, i: int, x: Tensor, cond: Tensor) -> Tensor:
        x = self.resnets[i](x, cond)
        return x if self.attentions is None else self.attentions[i](x)


def _residual_resampling(kind: str, style: str) -> bool:
    return kind.startswith("Resnet") or (kind.startswith("Attn") and style == "resnet")


class _Down(_Level):
    def __init__(
        self,
        kind: str,
        channels_in: int,
        channels: int,
        time_dim: int,
        config: UNetConfig,
        last: bool,
    ) -> None:
        inputs = [channels_in] + [channels] * (config.layers_per_block - 1)
        super().__init__(kind, inputs, channels, time_dim, config)
        self.downsamplers = None
        if not last:
            residual = _residual_resampling(kind, config.downsample_type)
            self.downsamplers = nn.ModuleList(
                [
                    _Resnet(channels, channels, time_dim, config, resample="down")
                    if residual
                    else _Downsample(channels, config)
                ]
            )

    def forward(self, x: Tensor, cond: Tensor, skips: list[Tensor]) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, x, cond)
            skips.append(x)
        if self.downsamplers is not None:
            x = self.downsamplers[0](x, cond)
            skips.append(x)
        return x


class _Up(_Level):
    def __init__(
        self,
        kind: str,
        channels_in: list[int],
        channels: int,
        time_dim: int,
        config: UNetConfig,
        last: bool,
    ) -> None:
        super().__init__(kind, channels_in, channels, time_dim, config)
        self.upsamplers = None
        if not last:
            residual = _residual_resampling(kind, config.upsample_type)
            self.upsamplers = nn.ModuleList(
                [
                    _Resnet(channels, channels, time_dim, config, resample="up")
                    if residual
                    else _Upsample(channels)
                ]
            )

    def forward(self, x: Tensor, cond: Tensor, skips: list[Tensor]) -> Tensor:
        for i in range(len(self.resnets)):
            x = self.layer(i, torch.cat([x, skips.pop()], dim=1), cond)
        return x if self.upsamplers is None else self.upsamplers[0](x, cond)


class _Mid(nn.Module):
    def __init__(self, channels: int, time_dim: int, config: UNetConfig) -> None:
        super().__init__()
        scale = config.mid_block_scale_factor
        groups = config.attn_norm_num_groups
        if groups is None and config.resnet_time_scale_shift == "default":
            groups = config.norm_num_groups
        self.resnets = nn.ModuleList(
            _Resnet(channels, channels, time_dim, config, scale=scale) for _ in range(2)
        )
        self.attentions = (
            nn.ModuleList([_Attention(channels, config, groups=groups, scale=scale)])
            if config.add_attention
            else None
        )

    def forward(self, x: Tensor, cond: Tensor) -> Tensor:
        x = self.resnets[0](x, cond)
        if self.attentions is not None:
            x = self.attentions[0](x)
        return self.resnets[1](x, cond)


class UNet(nn.Module):
    """Noise-prediction network, compatible with diffusers' ``UNet2DModel``.

    Args:
        config: the architecture.

    Example:
        >>> net = UNet(UNetConfig(sample_size=8, in_channels=1, out_channels=1,
        ...     down_block_types=("DownBlock2D",), up_block_types=("UpBlock2D",),
        ...     block_out_channels=(8,), norm_num_groups=4, attention_head_dim=None))
        >>> net(torch.zeros(2, 1, 8, 8), torch.tensor([0, 5])).shape
        torch.Size([2, 1, 8, 8])
    """

    def __init__(self, config: UNetConfig) -> None:
        super().__init__()
        self.config = config
        widths = config.block_out_channels
        time_dim = config.time_embedding_dim or widths[0] * 4
        self.conv_in = nn.Conv2d(config.in_channels, widths[0], 3, padding=1)
        features = config.time_features or widths[0]
        self.time_embedding = _TimeMLP(features, time_dim)
        self.class_embedding: nn.Module | None = None
        if config.class_embed_type == "timestep":
            self.class_embedding = _TimeMLP(features, time_dim)
        elif config.class_embed_type == "identity":
            self.class_embedding = nn.Identity()
        elif config.num_class_embeds is not None:
            self.class_embedding = nn.Embedding(config.num_class_embeds, time_dim)

        skips = [widths[0]]
        self.down_blocks = nn.ModuleList()
        for i, kind in enumerate(config.down_block_types):
            last = i == len(widths) - 1
            before = widths[max(i - 1, 0)]
            self.down_blocks.append(_Down(kind, before, widths[i], time_dim, config, last))
            skips += [widths[i]] * (config.layers_per_block + (not last))
        self.mid_block = _Mid(widths[-1], time_dim, config) if config.mid_block_type else None
        self.up_blocks = nn.ModuleList()
        current = widths[-1]
        for i, kind in enumerate(config.up_block_types):
            channels = widths[-1 - i]
            inputs = []
            for _ in range(config.layers_per_block + 1):
                inputs.append(current + skips.pop())
                current = channels
            last = i == len(widths) - 1
            self.up_blocks.append(_Up(kind, inputs, channels, time_dim, config, last))
        self.conv_norm_out = nn.GroupNorm(config.norm_num_groups, widths[0], eps=config.norm_eps)
        self.conv_out = nn.Conv2d(widths[0], config.out_channels, 3, padding=1)

        start = 0
        for block in self._resnets():
            size = block.time_emb_proj.out_features
            block.cond_slice = slice(start, start + size)
            start += size

    def _resnets(self) -> list[_Resnet]:
        return [module for module in self.modules() if isinstance(module, _Resnet)]

    def time_layers(self) -> list[nn.Linear]:
        """All layers whose weights :meth:`embed` and :meth:`condition` read, but for classes'."""
        time = self.time_embedding
        return [time.linear_1, time.linear_2, *(b.time_emb_proj for b in self._resnets())]

    def embed(self, t: Tensor) -> Tensor:
        """The embedding of the time, which is all that a sampler's step has of it.

        Args:
            t: times as the network was trained on them, shape (N,).

        Returns:
            shape (N, D).
        """
        scale = self.config.time_scale
        return self.time_embedding(self._sinusoids(t if scale == 1 else t * scale))

    def _sinusoids(self, t: Tensor) -> Tensor:
        config = self.config
        features = timestep_embedding(
            t,
            config.time_features or config.block_out_channels[0],
            flip_sin_to_cos=config.flip_sin_to_cos,
            freq_shift=config.freq_shift,
        )
        return features.to(self.conv_in.weight.dtype)

    def condition(self, embedding: Tensor, labels: Tensor | None = None) -> Tensor:
        """All that the blocks are told of the time and the class, in one row an image.

        Args:
            embedding: what :meth:`embed` returned, shape (N, D) or (1, D).
            labels: class indices, shape (N,); times or embeddings where ``class_embed_type``
                says so; None for a network without classes.

        Returns:
            shape (N, C); C is the sum of the blocks' channels.

        Raises:
            InputError: labels for a network without classes, or none for one with classes.
        """
        if (labels is None) != (self.class_embedding is None):
            raise InputError(
                "this network is class-conditional: it needs labels"
                if labels is None
                else "labels were given to a network without classes"
            )
        if self.class_embedding is not None and labels is not None:
            if self.config.class_embed_type == "timestep":
                labels = self._sinusoids(labels)
            embedding = embedding + self.class_embedding(labels)
        projections = [block.time_emb_proj for block in self._resnets()]
        weight = torch.cat([layer.weight for layer in projections])
        bias = torch.cat([layer.bias for layer in projections])
        return F.linear(silu(embedding), weight, bias)

    def forward(self, x: Tensor, t: Tensor, labels: Tensor | None = None) -> Tensor:
        """Predict the target for noisy images.

        Args:
            x: noisy images, shape (N, in_channels, H, W); H and W divisible by
                2^(levels - 1).
            t: times as the network was trained on them, shape (N,), (1,) or ().
            labels: class indices, shape (N,), or None.

        Returns:
            shape (N, out_channels, H, W).
        """
        return self.conditioned(x, self.condition(self.embed(t.reshape(-1)), labels))

    def conditioned(self, x: Tensor, cond: Tensor) -> Tensor:
        """The forward pass, given what :meth:`condition` returned: one row, or one an image."""
        if self.config.center_input_sample:
            x = 2 * x - 1.0
        x = self.conv_in(x)
        skips = [x]
        for block in self.down_blocks:
            x = block(x, cond, skips)
        if self.mid_block is not None:
            x = self.mid_block(x, cond)
        for block in self.up_blocks:
            x = block(x, cond, skips)
        return self.conv_out(silu(self.conv_norm_out(x)))


def in_parts(net: object) -> TypeGuard[UNet]:
    """Whether :meth:`UNet.conditioned` and the rest are all that calling this network does.

    They are not for a subclass with a ``forward`` of its own, nor under hooks.
    """
    return (
        isinstance(net, UNet)
        and type(net).forward is UNet.forward
        and "forward" not in vars(net)
        and not (net._forward_hooks or net._forward_pre_hooks)
    )


def count_flops(net: UNet) -> int:
    """Floating-point operations of one forward pass of one image, a multiply-add counting two.

    Convolutions, matrix products and attention are counted, as torch's own counter does.
    """
    from torch.utils.flop_counter import FlopCounterMode

    size, config = net.config.sample_size, net.config
    parameter = net.conv_in.weight
    x = torch.zeros(
        1, config.in_channels, size, size, dtype=parameter.dtype, device=parameter.device
    )
    labels = None
    if config.has_classes:
        labels = torch.zeros(1, dtype=torch.long, device=x.device)
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        net(x, torch.zeros(1, device=x.device), labels)
    return int(counter.get_total_flops())
