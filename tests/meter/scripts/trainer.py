"""transformers' Trainer on a tiny GPT-2 with random weights and random tokens; nothing is fetched from anywhere."""

from __future__ import annotations

import tempfile

import torch
from told import STEPS, begin, tell_loss, tell_states
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments


class Telling(TrainerCallback):
    """Tells each loss that the Trainer logs."""

    def on_log(
        self, _args: object, _state: object, _control: object, logs: dict[str, float], **_more: object
    ) -> None:
        if "loss" in logs:
            tell_loss(logs["loss"])


begin()
config = GPT2Config(
    vocab_size=128, n_positions=32, n_embd=32, n_layer=2, n_head=4, bos_token_id=0, eos_token_id=0
)
rows = [{"input_ids": row, "labels": row} for row in torch.randint(128, (64, 32))]
with tempfile.TemporaryDirectory() as folder:
    arguments = TrainingArguments(
        folder,
        max_steps=STEPS,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        logging_steps=1,
        save_strategy="no",
        report_to=[],
        use_cpu=True,
        disable_tqdm=True,
        seed=7,
    )
    Trainer(GPT2LMHeadModel(config), arguments, train_dataset=rows, callbacks=[Telling()]).train()
tell_states()
