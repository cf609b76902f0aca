"""Tiny-LaDeDa (arXiv:2406.09398): four small convolutions on an image's diagonal gradient.

    g = x * K,  for each colour apart, black beyond the edge,   K = [[-2, -1, 0], [-1, 0, 1], [0, 1, 2]]
    feature = mean over all places of relu(bn(conv3/2 relu(bn(conv1 relu(bn(conv3 conv1 g))))))

Each place sees 7 x 7 pixels. As the layer behind is linear, its logit of the mean is the mean of the patches' logits.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH = 8


class TinyLaDeDa(nn.Module):
    """Normalised pixels (n, 3, h, w) -> features (n, 8); its names are those of the published files."""

    kernel: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, WIDTH, 1, bias=False)
        self.conv2 = nn.Conv2d(WIDTH, WIDTH, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(WIDTH)
        block = {"conv1": nn.Conv2d(WIDTH, WIDTH, 1, bias=False), "bn1": nn.BatchNorm2d(WIDTH)}
        block |= {"conv2": nn.Conv2d(WIDTH, WIDTH, 3, stride=2, bias=False), "bn2": nn.BatchNorm2d(WIDTH)}
        self.layer1 = nn.ModuleList([nn.ModuleDict(block)])
        kernel = torch.tensor([[-2.0, -1.0, 0.0], [-1.0, 0.0, 1.0], [0.0, 1.0, 2.0]])
        self.register_buffer("kernel", kernel.expand(3, 1, 3, 3).contiguous(), persistent=False)

    def forward(self, pixels: Tensor) -> Tensor:
        block = self.layer1[0]
        found = F.conv2d(pixels, self.kernel.to(pixels), padding=1, groups=3)
        found = F.relu(self.bn1(self.conv2(self.conv1(found))))
        found = F.relu(block["bn1"](block["conv1"](found)))
        return F.relu(block["bn2"](block["conv2"](found))).mean(dim=(2, 3))
