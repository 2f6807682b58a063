"""Small trainings as the frameworks do them, each leaving the file or folder that people bring, and samples beside it.

Run as a module, so that no framework's imports, warnings or process groups reach the tests:
`python -m tests.trainers lightning FOLDER`, `torchrun --nproc-per-node 2 -m tests.trainers fsdp FOLDER`.
"""

import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from tests.models import IMAGE, ConvNet
from tests.packaging import lively, save_samples

CHECKPOINT = "checkpoint"
CLASS_NAMES = ["ant", "bee", "cat", "dog", "eel"]


def trained(kind: str, folder: Path, *arguments: str, ranks: int = 1) -> Path:
    """What the training `kind` left in `folder`: the path of the checkpoint. Runs it in processes of its own."""
    folder.mkdir(parents=True, exist_ok=True)
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)] if ranks > 1 else []
    command = [sys.executable, *launcher, "-m", "tests.trainers", kind, str(folder), *arguments]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, env=variables, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return next(path for path in folder.iterdir() if path.name.startswith(CHECKPOINT))


def batch(seed: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(16, *IMAGE, generator=generator), torch.randint(0, 5, (16,), generator=generator)


def step(model: nn.Module, optimizer: torch.optim.Optimizer, *, seed: int) -> None:
    images, labels = batch(seed)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(images), labels).backward()
    optimizer.step()


def lightning(folder: Path) -> None:
    """A LightningModule with a compiled network, a weighted loss and hyper-parameters, saved by its trainer."""
    from tests.lit import LitNet, Trainer

    module = LitNet(num_classes=5, class_names=CLASS_NAMES, rate=1e-3)
    module.backbone.load_state_dict(lively(0).state_dict())
    # Saved alike whatever compiles it, and inductor would take half a minute for two steps.
    module.backbone.compile(backend="eager")
    trainer = Trainer(
        max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=folder,
    )  # fmt: skip
    trainer.fit(module, DataLoader(TensorDataset(*batch(0)), 8))
    trainer.save_checkpoint(folder / f"{CHECKPOINT}.ckpt")
    save_samples(folder / "samples.npz", module.backbone.eval())


def wrapped(folder: Path) -> None:
    """A network inside torch.compile inside DistributedDataParallel, in the middle of its training."""
    import torch.distributed as dist

    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
    net = lively(0).train()
    model = torch.compile(nn.parallel.DistributedDataParallel(net), backend="eager")
    optimizer = torch.optim.AdamW(net.parameters(), lr=1e-3)
    step(model, optimizer, seed=1)  # type: ignore[arg-type]
    (folder / "meeting").unlink(missing_ok=True)
    torch.save(
        {"state_dict": model.state_dict(), "optimizer": optimizer.state_dict(), "epoch": 3},  # type: ignore[attr-defined]
        folder / f"{CHECKPOINT}.pt",
    )
    save_samples(folder / "samples.npz", net.eval())
    leave()


def fsdp(folder: Path) -> None:
    """A network whose weights are sharded over the ranks, saved by all of them into one folder."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict import get_state_dict
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.fsdp import fully_shard

    dist.init_process_group("gloo")
    model = lively(0)
    fully_shard(model.head)
    fully_shard(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    step(model, optimizer, seed=1 + dist.get_rank())
    weights, state = get_state_dict(model, optimizer)
    content = {"model": weights, "optimizer": state, "epoch": 3, "classes": CLASS_NAMES}
    save(content, checkpoint_id=folder / CHECKPOINT)
    model.eval()
    save_samples_of_all(folder / "samples.npz", model, rank=dist.get_rank())
    leave()


def lora(folder: Path) -> None:
    """Low-rank changes of a convolution, and a head trained whole, that PEFT saved beside the base they belong to."""
    from deploy.checkpoint.vision import import_torchvision

    import_torchvision()
    from peft import LoraConfig, get_peft_model

    net = lively(0)
    torch.save(net.state_dict(), folder / "base.pt")
    config = LoraConfig(r=3, lora_alpha=5, target_modules=["features.3"], modules_to_save=["head"])
    model = get_peft_model(net, config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    for seed in range(1, 6):
        step(model, optimizer, seed=seed)
    model.eval()
    model.save_pretrained(str(folder / CHECKPOINT))
    save_samples(folder / "samples.npz", model)


def large(folder: Path, megabytes: str) -> None:
    """One large tensor, sharded over the ranks."""
    import torch.distributed as dist
    from torch.distributed.checkpoint.state_dict_saver import save
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.tensor import Shard, distribute_tensor

    dist.init_process_group("gloo")
    mesh = init_device_mesh("cpu", (dist.get_world_size(),))
    rows = int(megabytes) * 1000
    whole = torch.arange(rows, dtype=torch.float32)[:, None].expand(rows, 250).contiguous()
    save({"model": {"weight": distribute_tensor(whole, mesh, [Shard(0)])}}, checkpoint_id=folder / CHECKPOINT)
    leave()


def leave() -> None:
    """End a rank once all have come to their end: one that goes earlier takes its connections from the others."""
    import torch.distributed as dist

    dist.barrier()
    dist.destroy_process_group()


def save_samples_of_all(path: Path, model: ConvNet, *, rank: int) -> None:
    """As `save_samples`, where every rank must run the model and one writes."""
    save_samples(path if rank == 0 else path.with_name(f"rank{rank}.npz"), model)


TRAININGS: dict[str, Callable[..., None]] = {
    "lightning": lightning, "wrapped": wrapped, "fsdp": fsdp, "lora": lora, "large": large,
}  # fmt: skip


def main(arguments: Sequence[str]) -> None:
    kind, folder, *more = arguments
    torch.manual_seed(0)
    torch.set_num_threads(1)
    TRAININGS[kind](Path(folder), *more)


if __name__ == "__main__":
    main(sys.argv[1:])
