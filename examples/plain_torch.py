"""A plain PyTorch loop on stored soft labels.

    ferkd label photos/train --teacher timm/convnext_tiny.fb_in22k_ft_in1k --out labels
    python examples/plain_torch.py photos/train labels --out run

Each epoch shows other crops. The same command continues a run that was stopped, in the middle of
an epoch too. Two batches make a step; one that an epoch leaves begun is finished by the next.
"""

import argparse
from pathlib import Path

import timm
import torch

import ferkd


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("labels")
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--model", default="mobilenetv4_conv_small")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=100, help="optimiser steps")
    args = parser.parse_args()

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    loader = ferkd.SoftLabelLoader(
        args.images,
        args.labels,
        batch_size=args.batch_size,
        crops_per_image=2,
        image_size=args.image_size,
        workers=2,
        regions=ferkd.Regions(),
    )
    torch.manual_seed(0)
    model = timm.create_model(args.model, num_classes=loader.num_classes).to(device)
    normalise = ferkd.Normalise(model.default_cfg["mean"], model.default_cfg["std"], device)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batches = 0

    args.out.mkdir(parents=True, exist_ok=True)
    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        batches = state["batches"]

    for _ in range(loader.epoch, args.epochs):
        for batch in loader:
            batch = batch.to(device, non_blocking=True)
            with torch.autocast(device.type, torch.bfloat16):
                logits = model(normalise(batch.images))
            loss = ferkd.soft_cross_entropy(logits.float(), batch.labels)
            (loss / args.accumulate).backward()
            batches += 1
            if batches % args.accumulate:
                continue
            optimizer.step()
            optimizer.zero_grad()
            if batches // args.accumulate % args.save_every == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"loader": loader.state_dict(), "batches": batches}
                torch.save(state, checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)
        print(f"epoch {loader.epoch} of {args.epochs}: loss {loss.item():.3f}", flush=True)
    torch.save(model.state_dict(), args.out / "weights.pt")


if __name__ == "__main__":
    main()
