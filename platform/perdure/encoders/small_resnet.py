"""A residual network for small pictures (32 to 64 pixels) that learns from scratch on a few CPU cores.

He, Zhang, Ren, Sun, "Deep Residual Learning for Image Recognition", CVPR 2016: the CIFAR design of section 4.2 with basic blocks, a
projection where the shape changes, and far fewer of them.
"""

import torch
from torch import Tensor, nn

__all__ = ["BasicBlock", "small_resnet_trunk"]


class BasicBlock(nn.Module):
    """Two 3 x 3 convolutions beside a shortcut: relu(F(x) + x), or relu(F(x) + W x) where the shape changes."""

    def __init__(self, channels_in: int, channels: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels, 3, stride, 1, bias=False)
        self.norm1 = nn.BatchNorm2d(channels)
        self.conv2 = nn.Conv2d(channels, channels, 3, 1, 1, bias=False)
        self.norm2 = nn.BatchNorm2d(channels)
        self.shortcut = (
            nn.Identity()
            if stride == 1 and channels_in == channels
            else nn.Sequential(nn.Conv2d(channels_in, channels, 1, stride, bias=False), nn.BatchNorm2d(channels))
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, h, w) -> (B, channels, h / stride, w / stride)."""
        out = torch.relu(self.norm1(self.conv1(x)))
        out = self.norm2(self.conv2(out))
        return torch.relu(out + self.shortcut(x))


def small_resnet_trunk(*, width: int, blocks: int) -> tuple[nn.Sequential, int]:
    """A stem and three stages of `width`, 2 `width` and 4 `width` channels, at full, half and quarter resolution.

    Args:
        width: channels of the first stage.
        blocks: residual blocks of each stage.
    Returns:
        the network up to its map, and the channels of the map.
    """
    layers: list[nn.Module] = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    channels = width
    for stage in range(3):
        for block in range(blocks):
            layers.append(BasicBlock(channels, width * 2**stage, stride=2 if stage and not block else 1))
            channels = width * 2**stage
    trunk = nn.Sequential(*layers)
    for module in trunk.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
    return trunk, channels
