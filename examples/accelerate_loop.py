"""accelerate: the loader is not given to ``prepare``, for it knows its ranks itself.

    accelerate launch --num_processes 2 examples/accelerate_loop.py photos/train labels --out run

The same command continues a run that was stopped, in the middle of an epoch too.
"""

import argparse
from pathlib import Path

import timm
import torch
from accelerate import Accelerator
from accelerate.utils import set_seed

import ferkd


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
    args = parser.parse_args()

    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(),  # unsaid, processes on CPUs train each alone
        mixed_precision="bf16",
        gradient_accumulation_steps=args.accumulate,
    )
    set_seed(0)
    loader = ferkd.SoftLabelLoader(
        args.images,
        args.labels,
        batch_size=args.batch_size,
        crops_per_image=2,
        image_size=args.image_size,
        workers=2,
        regions=ferkd.Regions(),
    )
    model = timm.create_model(args.model, num_classes=loader.num_classes)
    config, device = model.default_cfg, accelerator.device
    normalise = ferkd.Normalise(config["mean"], config["std"], device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    model, optimizer = accelerator.prepare(model, optimizer)
    accelerator.register_for_checkpointing(loader)

    new, states = args.out / "states" / "new", sorted((args.out / "states").glob("step-*"))
    if states:
        accelerator.load_state(str(states[-1]))
    steps = int(states[-1].name.removeprefix("step-")) if states else 0

    for _ in range(loader.epoch, args.epochs):
        for batch in loader:
            batch = batch.to(device, non_blocking=True)
            with accelerator.accumulate(model):
                logits = model(normalise(batch.images))
                loss = ferkd.soft_cross_entropy(logits.float(), batch.labels)
                accelerator.backward(loss)
                optimizer.step()
                optimizer.zero_grad()
            if accelerator.sync_gradients:
                steps += 1
                if steps % args.save_every == 0:
                    accelerator.save_state(str(new))
                    accelerator.wait_for_everyone()
                    if accelerator.is_main_process:  # only what is whole has a name to go on from
                        new.rename(new.with_name(f"step-{steps:09}"))
        accelerator.print(f"epoch {loader.epoch} of {args.epochs}: loss {loss.item():.3f}")
    accelerator.save_model(model, str(args.out))
    accelerator.end_training()


if __name__ == "__main__":
    main()
