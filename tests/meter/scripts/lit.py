"""A LightningModule with dropout under Lightning's Trainer."""

from __future__ import annotations

import lightning
import torch
from model import Gpt, make_batch
from told import STEPS, begin, tell_loss, tell_states
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset


class Module(lightning.LightningModule):
    """The GPT, its loss and its optimizer."""

    def __init__(self) -> None:
        super().__init__()
        self.model = Gpt()

    def training_step(self, batch: list[Tensor], _index: int) -> Tensor:
        _, loss = self.model(*batch)
        tell_loss(loss.detach())
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


begin()
data = TensorDataset(*make_batch(4 * STEPS))
trainer = lightning.Trainer(
    accelerator="cpu",
    max_steps=STEPS,
    logger=False,
    enable_checkpointing=False,
    enable_progress_bar=False,
    enable_model_summary=False,
    gradient_clip_val=1.0,
)
trainer.fit(Module(), DataLoader(data, 4, shuffle=True))
tell_states()
