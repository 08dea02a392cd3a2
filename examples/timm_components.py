"""timm's training components: task, optimiser, schedule, average of the weights.

    python examples/timm_components.py photos/train labels --out run
    torchrun --nproc-per-node 2 examples/timm_components.py photos/train labels --out run

A task of timm takes any criterion (output, target); here the target is the batch's soft labels.
"""

import argparse
import os
from contextlib import nullcontext
from pathlib import Path

import timm
import torch
from timm.optim import create_optimizer_v2
from timm.scheduler import CosineLRScheduler
from timm.task import ClassificationTask
from timm.utils import init_distributed_device, is_primary

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

    args.device = "cuda" if torch.cuda.is_available() else "cpu"
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    device = init_distributed_device(args)  # sets args.distributed, args.rank, ...
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
    task = ClassificationTask(model, ferkd.soft_cross_entropy, device=device)
    task.setup_ema(decay=0.999, use_warmup=True)
    optimizer = create_optimizer_v2(model, opt="adamw", lr=1e-3, weight_decay=0.05)
    total = args.epochs * len(loader) // args.accumulate
    schedule = CosineLRScheduler(optimizer, t_initial=total, warmup_t=total // 20)
    batches = 0

    checkpoint = args.out / "checkpoint.pt"
    if checkpoint.is_file():
        state = torch.load(checkpoint, map_location=device, weights_only=True)
        task.load_checkpoint_state(state["state_dict"])
        task.load_checkpoint_state(state["state_dict_ema"], ema=True)
        optimizer.load_state_dict(state["optimizer"])
        loader.load_state_dict(state["loader"])
        batches = state["batches"]
    if args.distributed:
        task.prepare_distributed(device_ids=[device] if device.type == "cuda" else None)

    for _ in range(loader.epoch, args.epochs):
        for batch in loader:
            batch = batch.to(device, non_blocking=True)
            batches += 1
            step, begun = divmod(batches, args.accumulate)
            with task.no_sync() if begun else nullcontext():
                with torch.autocast(device.type, torch.bfloat16):
                    loss = task(normalise(batch.images), batch.labels)["loss"]
                (loss / args.accumulate).backward()
            if begun:
                continue
            schedule.step_update(step)
            optimizer.step()
            optimizer.zero_grad()
            task.update_ema(step=step)
            if step % args.save_every == 0 and is_primary(args):
                state = task.get_checkpoint_state() | task.get_checkpoint_state(ema=True)
                state |= {"optimizer": optimizer.state_dict()}
                state |= {"loader": loader.state_dict(), "batches": batches}
                args.out.mkdir(parents=True, exist_ok=True)
                torch.save(state, checkpoint.with_suffix(".new"))
                checkpoint.with_suffix(".new").replace(checkpoint)
    if args.distributed:
        torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
