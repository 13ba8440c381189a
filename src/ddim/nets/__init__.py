"""Networks. Torch only: nothing here knows what a noise schedule is."""

from ddim.nets.unet import UNet, UNetConfig

__all__ = ["UNet", "UNetConfig"]
