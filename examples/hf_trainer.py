"""The Hugging Face Trainer on stored soft labels.

    python examples/hf_trainer.py photos/train labels --out run
    torchrun --nproc-per-node 2 examples/hf_trainer.py photos/train labels --out run

The trainer calls the loader's ``set_epoch``, and leaves it to know its ranks. The same command
continues a run that was stopped: the callback sets the loader to the step that the trainer
resumes from, so nothing is decoded only to be skipped.
"""

import argparse
from pathlib import Path
from typing import Any

import timm
import torch
from transformers import Trainer, TrainerCallback, TrainingArguments

import ferkd


class Distiller(Trainer):
    def __init__(self, *, loader: ferkd.SoftLabelLoader, **options: Any) -> None:
        super().__init__(**options)
        self.loader = loader
        config = self.model.default_cfg
        self.normalise = ferkd.Normalise(config["mean"], config["std"], self.args.device)

    def get_train_dataloader(self) -> ferkd.SoftLabelLoader:
        return self.loader

    def compute_loss(self, model: Any, inputs: ferkd.Batch, **_: Any) -> torch.Tensor:
        batch = inputs.to(self.args.device, non_blocking=True)
        return ferkd.soft_cross_entropy(model(self.normalise(batch.images)).float(), batch.labels)


class Resume(TrainerCallback):
    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        loader = given["train_dataloader"]
        done = state.global_step * args.gradient_accumulation_steps
        epoch, batch = divmod(done, len(loader))
        loader.load_state_dict({**loader.state_dict(), "epoch": epoch, "batch": batch})


def last_whole(out: str) -> str | None:
    """The last checkpoint that was written to its end, where the trainer writes its own state."""
    whole = [file.parent for file in Path(out).glob("checkpoint-*/trainer_state.json")]
    return str(max(whole, key=lambda folder: int(folder.name[11:]))) if whole else None


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("labels")
    parser.add_argument("--out", default="run")
    parser.add_argument("--model", default="mobilenetv4_conv_small")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256, help="of all processes together")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=100, help="optimiser steps")
    args = parser.parse_args()

    arguments = TrainingArguments(
        args.out,
        num_train_epochs=args.epochs,
        learning_rate=1e-3,
        bf16=True,
        use_cpu=not torch.cuda.is_available(),
        gradient_accumulation_steps=args.accumulate,
        save_steps=args.save_every,
        ignore_data_skip=True,  # Resume does it without decoding
        remove_unused_columns=False,
        report_to="none",
    )
    loader = ferkd.SoftLabelLoader(
        args.images,
        args.labels,
        batch_size=args.batch_size,
        crops_per_image=2,
        image_size=args.image_size,
        workers=2,
        regions=ferkd.Regions(),
    )
    if len(loader) % args.accumulate:
        # The trainer makes a shorter step of what is left, and resumes only whole ones.
        raise SystemExit(f"{len(loader)} batches an epoch; --accumulate must divide them")
    model = timm.create_model(args.model, num_classes=loader.num_classes)
    trainer = Distiller(model=model, args=arguments, loader=loader, callbacks=[Resume()])
    trainer.train(resume_from_checkpoint=last_whole(args.out))


if __name__ == "__main__":
    main()
