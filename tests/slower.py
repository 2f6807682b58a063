"""The tiny convolutional net with a body that takes many times as long, under the same contract."""

from torch import nn

from tests.models import ConvNet


class SlowerNet(ConvNet):
    """Four convolutions of 64 channels before the same head."""

    def __init__(self, num_classes: int = 5) -> None:
        super().__init__(num_classes)
        wide = [layer for _ in range(4) for layer in (nn.Conv2d(64, 64, 3, padding=1), nn.BatchNorm2d(64), nn.ReLU())]
        self.features = nn.Sequential(nn.Conv2d(3, 64, 3, padding=1), *wide, nn.Conv2d(64, 8, 3, stride=2))
