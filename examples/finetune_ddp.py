"""Transfer learning on several processes, as `torchrun` starts them, and the sharded checkpoint it leaves.

Owns what differs from `finetune.py`: each rank trains on its share, the ranks save together, each its part.
Run it by hand: `torchrun --nproc-per-node 2 examples/finetune_ddp.py --out .demo/sharded`.
"""

import argparse
import os
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from digits import CLASSES, Digits, load_split, preprocess
from finetune import PREPROCESSING, SAMPLES, Recipe, build, logits, make_optimizer, save_samples
from torch import nn
from torch.distributed.checkpoint.state_dict import get_state_dict
from torch.distributed.checkpoint.state_dict_saver import save
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel


def main() -> int:
    """Train on all ranks, save together, and report; 1 where the held-out accuracy misses `--min-accuracy`."""
    arguments = _arguments()
    if "RANK" not in os.environ:
        raise SystemExit("start it with torchrun: torchrun --nproc-per-node 2 examples/finetune_ddp.py")
    dist.init_process_group("gloo")
    code = _train(arguments)
    dist.barrier()  # a rank that goes earlier would take its connections from the others
    dist.destroy_process_group()
    return code


def _train(arguments: argparse.Namespace) -> int:
    recipe = Recipe(
        arch=arguments.arch,
        layers=tuple(arguments.train.split(",")) if arguments.train else (),
        pretrained=False,
        epochs=arguments.epochs,
        batch=arguments.batch,
        head_rate=3e-3,
        body_rate=1e-3,
        seed=arguments.seed,
    )
    torch.set_num_threads(max(1, (os.cpu_count() or 1) // dist.get_world_size()))
    torch.manual_seed(recipe.seed)  # the same on every rank: DDP would send rank 0's weights, FSDP takes each one's own
    training, held_out = load_split(recipe.seed)
    model, head = build(recipe)
    if arguments.strategy == "fsdp":
        fully_shard(model)  # in place, and before the optimizer takes the parameters
    optimizer = make_optimizer(model, head, recipe)
    wrapped = DistributedDataParallel(model) if arguments.strategy == "ddp" else model
    accuracy = 0.0
    for epoch in range(1, recipe.epochs + 1):
        _pass_over(wrapped, optimizer, training, batch=recipe.batch)
        accuracy = _accuracy(model, held_out)
        _say(f"epoch {epoch}/{recipe.epochs}: held-out accuracy {accuracy:.1%}")
    _save(arguments.out, wrapped, optimizer, recipe)
    save_samples(arguments.out / "samples.npz", model, held_out.head(SAMPLES), write=dist.get_rank() == 0)
    _say(f"held-out accuracy: {accuracy:.1%} on {len(held_out.labels)} images (at least {arguments.min_accuracy:.0%})")
    return 0 if accuracy >= arguments.min_accuracy else 1


def _pass_over(model: nn.Module, optimizer: torch.optim.Optimizer, training: Digits, *, batch: int) -> None:
    """One pass over this rank's share of the training images; the ranks' gradients are averaged on the way."""
    rank, ranks = dist.get_rank(), dist.get_world_size()
    images, labels = torch.from_numpy(preprocess(training.images)), torch.from_numpy(training.labels)
    share = torch.randperm(len(images))[: len(images) // ranks * ranks][rank::ranks]  # as long on every rank
    model.train()
    for rows in share.split(batch):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(images[rows]), labels[rows]).backward()
        optimizer.step()
    # Each rank's normalisation layers have seen its own images only: all go on with rank 0's statistics.
    for buffer in model.buffers():
        dist.broadcast(buffer, src=0)


def _accuracy(model: nn.Module, held_out: Digits) -> float:
    """The share of held-out images that are told right. Every rank takes part: with FSDP each holds some weights."""
    predicted = logits(model, preprocess(held_out.images)).argmax(axis=1)
    return float((predicted == held_out.labels).mean())


def _save(out: Path, model: nn.Module, optimizer: torch.optim.Optimizer, recipe: Recipe) -> None:
    """Write one folder from all ranks: weights, optimizer and what is known of the training."""
    weights, state = get_state_dict(model, optimizer)
    content: dict[str, Any] = {
        "model": weights,
        "optimizer": state,
        "epoch": recipe.epochs,
        "classes": list(CLASSES),
        "preprocessing": PREPROCESSING,
    }
    folder = out / f"digits_{recipe.arch}_sharded"
    save(content, checkpoint_id=folder)
    _say("".join(f"  {path} ({path.stat().st_size:,} bytes)\n" for path in sorted(folder.iterdir())))


def _say(text: str) -> None:
    if dist.get_rank() == 0:
        print(text, flush=True)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Fine-tune a torchvision network on several processes.")
    parser.add_argument("--out", type=Path, default=Path(".demo/sharded"), help="the folder to write into")
    parser.add_argument("--strategy", choices=["ddp", "fsdp"], default="ddp", help="whole copies, or shards of weights")
    parser.add_argument("--arch", default="resnet18", help="a classification builder of torchvision")
    parser.add_argument("--train", default="layer4", help="layers to train besides the new head; '' for the head alone")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch", type=int, default=32, help="images per rank and step")
    parser.add_argument("--min-accuracy", type=float, default=0.9, help="end with 1 below this share")
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    sys.exit(main())
