"""DistributedDataParallel under torchrun: each process gets its part of every batch.

    torchrun --nproc-per-node 2 examples/torchrun_ddp.py photos/train labels --out run

``--batch-size`` is that of all processes together; the loader finds them by the process group. The
same command continues a run that was stopped, with another number of processes too.
"""

import argparse
import os
from contextlib import nullcontext
from pathlib import Path

import timm
import torch
from torch import distributed
from torch.nn.parallel import DistributedDataParallel

import ferkd


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("images")
    parser.add_argument("labels")
    parser.add_argument("--out", type=Path, default=Path("run"))
    parser.add_argument("--model", default="mobilenetv4_conv_small")
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--batch-size", type=int, default=1024)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--accumulate", type=int, default=2)
    parser.add_argument("--save-every", type=int, default=100, help="optimiser steps")
    args = parser.parse_args()

    cuda = torch.cuda.is_available()
    device = torch.device("cuda", int(os.environ["LOCAL_RANK"])) if cuda else torch.device("cpu")
    distributed.init_process_group("nccl" if cuda else "gloo")
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

    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        batches = state["batches"]
    parallel = DistributedDataParallel(model, device_ids=[device.index] if cuda else None)

    for _ in range(loader.epoch, args.epochs):
        for batch in loader:
            batch = batch.to(device, non_blocking=True)
            batches += 1
            last = batches % args.accumulate == 0
            with nullcontext() if last else parallel.no_sync():
                with torch.autocast(device.type, torch.bfloat16):
                    logits = parallel(normalise(batch.images))
                loss = ferkd.soft_cross_entropy(logits.float(), batch.labels)
                (loss / args.accumulate).backward()
            if not last:
                continue
            optimizer.step()
            optimizer.zero_grad()
            if batches // args.accumulate % args.save_every == 0 and distributed.get_rank() == 0:
                state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                state |= {"loader": loader.state_dict(), "batches": batches}
                args.out.mkdir(parents=True, exist_ok=True)
                torch.save(state, checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)
    if distributed.get_rank() == 0:
        torch.save(model.state_dict(), args.out / "weights.pt")
    distributed.destroy_process_group()


if __name__ == "__main__":
    main()
