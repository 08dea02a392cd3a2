"""Lightning: fit for several epochs, on one process or several.

    python examples/lightning_ddp.py photos/train labels --out run --devices 2

The loader goes into ``fit`` as it is. Lightning's checkpoints hold its state, so the same command
continues a run that was stopped, in the middle of an epoch too.
"""

import argparse
from pathlib import Path

import lightning
import timm
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

import ferkd


class Student(lightning.LightningModule):
    def __init__(self, name: str, num_classes: int) -> None:
        super().__init__()
        self.model = timm.create_model(name, num_classes=num_classes)

    def training_step(self, batch: ferkd.Batch, number: int) -> torch.Tensor:
        config = self.model.default_cfg
        normalise = ferkd.Normalise(config["mean"], config["std"], self.device)
        logits = self.model(normalise(batch.images))
        loss = ferkd.soft_cross_entropy(logits.float(), batch.labels)
        self.log("loss", loss, batch_size=len(batch))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("labels")
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--model", default="mobilenetv4_conv_small")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256, help="of all processes together")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=100, help="optimiser steps")
    parser.add_argument("--devices", type=int, default=1)
    args = parser.parse_args()

    lightning.seed_everything(0)
    loader = ferkd.SoftLabelLoader(
        args.images,
        args.labels,
        batch_size=args.batch_size,
        crops_per_image=2,
        image_size=args.image_size,
        workers=2,
        regions=ferkd.Regions(),
    )
    trainer = lightning.Trainer(
        default_root_dir=args.out,
        accelerator="auto",
        devices=args.devices,
        strategy="ddp" if args.devices > 1 else "auto",
        precision="bf16-mixed",
        accumulate_grad_batches=args.accumulate,
        max_epochs=args.epochs,
        log_every_n_steps=1,
        callbacks=ModelCheckpoint(
            args.out, filename="{step}", save_last=True, every_n_train_steps=args.save_every
        ),
        enable_progress_bar=False,
    )
    last = args.out / "last.ckpt"
    trainer.fit(
        Student(args.model, loader.num_classes),
        loader,
        ckpt_path=last if last.is_file() else None,
    )


if __name__ == "__main__":
    main()
