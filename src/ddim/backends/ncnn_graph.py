"""The UNet's modules written as ncnn's layers: a text, a line a layer, and the layers' weights.

The numbers of a layer's options are ncnn's, https://github.com/Tencent/ncnn/wiki/operators.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from torch import Tensor, nn

from ddim.nets.unet import UNet, _Attention, _Down, _Level, _Mid, _Resnet, _Up

__all__ = ["UNetGraph"]

_MAGIC = 7767517  # the first line of every network that ncnn reads
_TAG = bytes(4)  # before weights that could be compressed, and are not
_NO_SGEMM, _NO_WINOGRAD = 1 << 5, 1 << 6
# Where a convolution by Winograd's tiles takes longer than one by a matrix product, and where this
# takes longer than one by plain loops; measured.
_FEW_PIXELS, _FEW_CHANNELS = 16, 4


class _Blob(NamedTuple):
    """A value between layers: its name, and its shape as an image's."""

    name: str
    channels: int
    height: int
    width: int


class _Graph:
    """Layers in ncnn's text, and their weights."""

    def __init__(self) -> None:
        self.weights: list[bytes] = []
        self._layers: list[tuple[str, list[str], list[str], str]] = []

    def layer(
        self, kind: str, inputs: Sequence[_Blob], outputs: Sequence[str], options: Mapping[int, Any]
    ) -> None:
        """Append a layer; its options have numbers in ncnn, and so they have here."""
        said = " ".join(f"{number}={value}" for number, value in options.items())
        self._layers.append((kind, [blob.name for blob in inputs], [*outputs], said))

    def then(self, x: _Blob, kind: str, more: Sequence[_Blob] = (), **options: Any) -> _Blob:
        """Append a layer that gives one value, of ``x``'s shape; option 7 is ``_7``."""
        name = self.name()
        self.layer(kind, [x, *more], [name], {int(key[1:]): v for key, v in options.items()})
        return x._replace(name=name)

    def name(self) -> str:
        """Of the first value of the layer appended next."""
        return f"v{len(self._layers)}"

    def weigh(self, *parameters: Tensor | None, tag: bytes = b"") -> None:
        """Append weights of the layer appended last, ``tag`` before each."""
        for parameter in parameters:
            assert parameter is not None
            self.weights += [tag, parameter.detach().contiguous().numpy().tobytes()]

    def text(self) -> str:
        """The network; a value that several layers read is split among them, as ncnn has it."""
        readers = Counter(name for _, inputs, _, _ in self._layers for name in inputs)
        read: Counter[str] = Counter()
        lines: list[str] = []
        blobs = 0
        for kind, inputs, outputs, options in self._layers:
            taken = []
            for name in inputs:
                taken.append(f"{name}_{read[name]}" if readers[name] > 1 else name)
                read[name] += 1
            names = " ".join([*taken, *outputs])
            lines.append(f"{kind} {len(lines)} {len(taken)} {len(outputs)} {names} {options}")
            blobs += len(outputs)
            for name in outputs:
                if (count := readers[name]) > 1:
                    parts = " ".join(f"{name}_{i}" for i in range(count))
                    lines.append(f"Split {len(lines)} 1 {count} {name} {parts}")
                    blobs += count
        return "\n".join([str(_MAGIC), f"{len(lines)} {blobs}", *lines, ""])


class UNetGraph(_Graph):
    """The UNet's modules as ncnn's layers, one method a module.

    Args:
        net: the network.
        size: height and width of the images.

    Attributes:
        columns: of the condition.
    """

    def __init__(self, net: UNet, size: tuple[int, int]) -> None:
        super().__init__()
        x = _Blob("x", net.config.in_channels, *size)
        self.layer("Input", [], [x.name], {})
        self.columns = self._read_condition(net)
        level: Any
        x = self.conv(x, net.conv_in)
        skips = [x]
        for level in net.down_blocks:
            x = self.down(x, level, skips)
        if net.mid_block is not None:
            x = self.mid(x, net.mid_block)
        for level in net.up_blocks:
            x = self.up(x, level, skips)
        x = self.norm(x, net.conv_norm_out)
        self.conv(self.then(x, "Swish"), net.conv_out, name="y")

    def _read_condition(self, net: UNet) -> int:
        """Slice the condition into what each block is told of it.

        It is a vector and not an image of one pixel, which ncnn slices wrongly where it gathers
        the channels of the whole in fours, and those of a part not.
        """
        self._told: dict[_Resnet, list[_Blob]] = {}
        names, widths = [], []
        for block in net._resnets():
            parts = 2 if block.scale_shift else 1
            width = block.time_emb_proj.out_features // parts
            told = [_Blob(f"t{len(names) + i}", width, 1, 1) for i in range(parts)]
            names += [blob.name for blob in told]
            widths += [width] * parts
            self._told[block] = told
        cond = _Blob("cond", sum(widths), 1, 1)
        self.layer("Input", [], [cond.name], {})
        sizes = ",".join(str(width) for width in widths)
        self.layer("Slice", [cond], names, {-23300: f"{len(widths)},{sizes}", 1: 0})
        return cond.channels

    def conv(self, x: _Blob, layer: nn.Conv2d, *, name: str = "", pad_after: bool = False) -> _Blob:
        """Convolve; with ``pad_after`` a row and a column of zeros come after the image only."""
        kernel, stride, pad = layer.kernel_size[0], layer.stride[0], int(layer.padding[0])
        shrink = kernel - 2 * pad - pad_after
        height, width = ((side - shrink) // stride + 1 for side in (x.height, x.width))
        out = _Blob(name or self.name(), layer.out_channels, height, width)
        options: dict[int, Any] = {
            0: out.channels,
            1: kernel,
            3: stride,
            4: pad,
            5: 1,
            6: layer.weight.numel(),
        }
        if pad_after:
            options |= {15: 1, 16: 1}
        # ncnn chooses the tiles of a Winograd convolution by the shape, of which this is the hint.
        options[-23330] = f"4,3,{width},{height},{out.channels}"
        if min(x.channels, out.channels) <= _FEW_CHANNELS:
            options[31] = _NO_WINOGRAD | _NO_SGEMM
        elif height * width <= _FEW_PIXELS:
            options[31] = _NO_WINOGRAD
        self.layer("Convolution", [x], [out.name], options)
        self.weigh(layer.weight, tag=_TAG)
        self.weigh(layer.bias)
        return out

    def norm(self, x: _Blob, layer: nn.GroupNorm) -> _Blob:
        """Normalise in groups of channels."""
        x = self.then(x, "GroupNorm", _0=layer.num_groups, _1=x.channels, _2=f"{layer.eps:.9e}")
        self.weigh(layer.weight, layer.bias)
        return x

    def add(self, x: _Blob, y: _Blob) -> _Blob:
        """The sum; ``y`` may be one number a channel."""
        return self.then(x, "BinaryOp", [y], _0=0)

    def divide(self, x: _Blob, divisor: float) -> _Blob:
        """Divide by a number."""
        return x if divisor == 1 else self.then(x, "BinaryOp", _0=3, _1=1, _2=f"{divisor:.9e}")

    def double(self, x: _Blob) -> _Blob:
        """Repeat every pixel in both directions."""
        out = self.then(x, "Interp", _0=1, _1="2.0", _2="2.0")
        return out._replace(height=2 * x.height, width=2 * x.width)

    def halve(self, x: _Blob) -> _Blob:
        """The mean of every four pixels."""
        out = self.then(x, "Pooling", _0=1, _1=2, _2=2, _5=1)
        return out._replace(height=x.height // 2, width=x.width // 2)

    def resnet(self, x: _Blob, block: _Resnet) -> _Blob:
        """``_Resnet.forward``."""
        h = self.then(self.norm(x, block.norm1), "Swish")
        if block.resample:
            resample = self.double if block.resample == "up" else self.halve
            x, h = resample(x), resample(h)
        h = self.conv(h, block.conv1)
        if block.scale_shift:
            scale, shift = self._told[block]
            scale = self.then(scale, "BinaryOp", _0=0, _1=1, _2="1.0")
            h = self.then(self.norm(h, block.norm2), "BinaryOp", [scale], _0=2)
            h = self.add(h, shift)
        else:
            h = self.norm(self.add(h, self._told[block][0]), block.norm2)
        h = self.conv(self.then(h, "Swish"), block.conv2)
        if block.conv_shortcut is not None:
            x = self.conv(x, block.conv_shortcut)
        return self.divide(self.add(x, h), block.output_scale_factor)

    def attention(self, x: _Blob, block: _Attention) -> _Blob:
        """``_Attention.forward``."""
        pixels, channels = x.height * x.width, x.channels
        tokens = x if block.group_norm is None else self.norm(x, block.group_norm)
        tokens = self.then(tokens, "Reshape", _0=pixels, _1=channels)
        tokens = self.then(tokens, "Permute", _0=1)
        size = channels * channels
        attended = self.then(tokens, "MultiHeadAttention", _0=channels, _1=block.heads, _2=size)
        out: Any = block.to_out[0]
        for layer in (block.to_q, block.to_k, block.to_v, out):
            self.weigh(layer.weight, tag=_TAG)
            self.weigh(layer.bias)
        attended = self.then(attended, "Permute", _0=1)
        attended = self.then(attended, "Reshape", _0=x.width, _1=x.height, _2=channels)
        return self.divide(self.add(x, attended), block.rescale_output_factor)

    def level(self, x: _Blob, level: _Level, i: int) -> _Blob:
        """``_Level.layer``."""
        resnets: Any = level.resnets
        attentions: Any = level.attentions
        x = self.resnet(x, resnets[i])
        return x if attentions is None else self.attention(x, attentions[i])

    def down(self, x: _Blob, level: _Down, skips: list[_Blob]) -> _Blob:
        """``_Down.forward``."""
        for i in range(len(level.resnets)):
            x = self.level(x, level, i)
            skips.append(x)
        if level.downsamplers is not None:
            last: Any = level.downsamplers[0]
            if isinstance(last, _Resnet):
                x = self.resnet(x, last)
            else:
                x = self.conv(x, last.conv, pad_after=last.pad_after)
            skips.append(x)
        return x

    def mid(self, x: _Blob, mid: _Mid) -> _Blob:
        """``_Mid.forward``."""
        resnets: Any = mid.resnets
        x = self.resnet(x, resnets[0])
        if mid.attentions is not None:
            attentions: Any = mid.attentions
            x = self.attention(x, attentions[0])
        return self.resnet(x, resnets[1])

    def up(self, x: _Blob, level: _Up, skips: list[_Blob]) -> _Blob:
        """``_Up.forward``."""
        for i in range(len(level.resnets)):
            skip = skips.pop()
            both = self.then(x, "Concat", [skip], _0=0)
            x = self.level(both._replace(channels=x.channels + skip.channels), level, i)
        if level.upsamplers is None:
            return x
        last: Any = level.upsamplers[0]
        if isinstance(last, _Resnet):
            return self.resnet(x, last)
        return self.conv(self.double(x), last.conv)
