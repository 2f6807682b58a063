"""A LightningModule as people write them: a network under a name of their own, a weighted loss, hyper-parameters."""

from typing import Any

import torch
from torch import Tensor, nn

from deploy.checkpoint.vision import import_torchvision
from tests.models import ConvNet

import_torchvision()  # which Lightning's metrics import too, and which a torch without its operators needs help with

from pytorch_lightning import LightningModule, Trainer  # noqa: E402

__all__ = ["LitNet", "Trainer"]


class LitNet(LightningModule):
    """`rate` has no default, so that whoever builds it must know the hyper-parameters."""

    def __init__(self, num_classes: int, class_names: list[str], rate: float) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.backbone = ConvNet(num_classes)
        self.criterion = nn.CrossEntropyLoss(weight=torch.ones(num_classes))

    def forward(self, image: Tensor) -> Tensor:
        return self.backbone(image)  # type: ignore[no-any-return]

    def training_step(self, batch: Any, index: int) -> Tensor:
        images, labels = batch
        return self.criterion(self(images), labels)  # type: ignore[no-any-return]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=self.hparams["rate"])
