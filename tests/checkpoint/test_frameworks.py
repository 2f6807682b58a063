"""What training frameworks leave is read as the network that was trained: wrappers, Lightning, sharded folders."""

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor

from deploy.checkpoint.formats import read_stored
from deploy.checkpoint.load import build_module, read_checkpoint
from deploy.checkpoint.model import Checkpoint, CheckpointRequest
from deploy.checkpoint.sharded import read_sharded
from deploy.checkpoint.weights import find_weights, left_out_notes, strip_prefixes, unwrap
from deploy.checkpoint.zoo import load_zoo
from deploy.errors import UsageError
from deploy.files import sha256_folder
from deploy.processes import own_peak_memory, run_alone
from tests.models import IMAGE
from tests.packaging import lively
from tests.trainers import CLASS_NAMES, trained

NET = "tests.models:ConvNet"
PLAIN = {"features.0.weight": torch.ones(2), "features.0.bias": torch.ones(2), "head.weight": torch.zeros(2)}


def read(path: Path, factory: str = NET) -> Checkpoint:
    return read_checkpoint(CheckpointRequest(path=path, factory=factory, input_shapes=(IMAGE,)))


def assert_answers_as_trained(checkpoint: Checkpoint, samples: Path) -> None:
    """The module gives what the training side saved beside its checkpoint."""
    with np.load(samples, allow_pickle=False) as archive, torch.no_grad():
        found = build_module(checkpoint)(torch.from_numpy(archive["input"]))
        np.testing.assert_allclose(found.numpy(), archive["expected/output"], rtol=1e-5, atol=1e-5)
        assert np.ptp(archive["expected/output"]) > 1


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("frameworks")


@pytest.fixture(scope="module")
def sharded(folder: Path) -> Path:
    return trained("fsdp", folder / "fsdp", ranks=2)


@pytest.fixture
def copy(sharded: Path, tmp_path: Path) -> Path:
    """The sharded folder, to be damaged."""
    return Path(shutil.copytree(sharded, tmp_path / "copy"))


def last(tensors: dict[str, Tensor]) -> tuple[tuple[str, ...], list[str]]:
    *_, (removed, left) = strip_prefixes(tensors)
    assert set(unwrap(tensors, removed)) == set(left)
    return removed, sorted(left)


@pytest.mark.parametrize(
    ("names", "removed"),
    [
        (["net.{}"], ("net.",)),
        (["net._orig_mod.{}"], ("net.", "_orig_mod.")),
        (["_orig_mod.module.{}"], ("_orig_mod.", "module.")),
        (["model._fsdp_wrapped_module.{}"], ("model.", "_fsdp_wrapped_module.")),
        (["classifier_net.{}"], ("classifier_net.",)),
        (["model.{}", "criterion.weight", "train_acc.total"], ("model.",)),
        (["cnn.{}", "loss_fn.pos_weight", "val_metrics.f1.tp"], ("cnn.",)),
    ],
)
def test_what_wraps_a_network_is_removed(names: list[str], removed: tuple[str, ...]) -> None:
    tensors = {name.format(inner): value for name in names for inner, value in PLAIN.items()}
    assert last(tensors) == (removed, sorted(PLAIN))


def test_wrappers_inside_names_are_removed() -> None:
    tensors = {
        "model.features._orig_mod.0.weight": torch.ones(2),
        "model.features._orig_mod.0.bias": torch.ones(2),
        "model.head._checkpoint_wrapped_module.weight": torch.ones(2),
    }
    assert last(tensors) == (("model.", "._orig_mod.", "._checkpoint_wrapped_module."), sorted(PLAIN))


def test_losses_and_metrics_that_are_left_out_are_named() -> None:
    tensors = {"model.fc.weight": torch.ones(2), "criterion.weight": torch.ones(2)}
    assert left_out_notes(tensors, ("model.",)) == ("tensors that only training uses were left out: criterion.weight",)
    assert left_out_notes({"model.fc.weight": torch.ones(2)}, ("model.",)) == ()


def test_a_network_beside_metrics_of_any_name_is_found_by_its_factory(tmp_path: Path) -> None:
    net = {f"net._orig_mod.{name}": value for name, value in lively(0).state_dict().items()}
    other = {f"critic.{name}": value for name, value in lively(1).state_dict().items()}
    metrics = {"conf.confmat": torch.ones(5, 5), "val_f1.tp": torch.ones(5)}
    torch.save({**net, **metrics, "other.weight": torch.ones(3)}, tmp_path / "w.pt")
    found = read(tmp_path / "w.pt")
    assert found.removed_prefixes == ("._orig_mod.", "net.")
    note = "tensors beside the network that was asked for were left out: conf.confmat, val_f1.tp, other.weight"
    assert note in found.notes
    assert torch.equal(build_module(found).state_dict()["head.weight"], lively(0).head.weight)
    torch.save({**net, **other}, tmp_path / "w.pt")
    with pytest.raises(UsageError, match=r"several networks .*under net\., critic\."):
        read(tmp_path / "w.pt")


def test_a_second_network_in_the_file_is_no_loss_and_stays() -> None:
    tensors = {"model.fc.weight": torch.ones(2), "teacher.fc.weight": torch.ones(2)}
    assert last(tensors) == ((), sorted(tensors))


def test_no_known_architecture_loses_a_part_of_its_own() -> None:
    for entry in load_zoo().values():
        assert last(dict.fromkeys(entry.shapes, torch.ones(1)))[0] == (), entry.name


def test_flat_parameters_of_fsdp_are_refused_with_the_way_out() -> None:
    with pytest.raises(UsageError, match=r"'layer\._flat_param'(.|\n)*get_model_state_dict"):
        find_weights({"model": {"layer._flat_param": torch.ones(4)}}, None)


@pytest.mark.parametrize("trusted", [False, True])
def test_the_pieces_of_one_rank_are_refused_with_the_way_out(tmp_path: Path, *, trusted: bool) -> None:
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/ranks", rank=0, world_size=1)
    try:
        weight = distribute_tensor(torch.ones(4, 2), init_device_mesh("cpu", (1,)), [Shard(0)])
        torch.save({"head.weight": weight}, tmp_path / "w.pt")
        with pytest.raises(UsageError, match=r"DTensor(.|\n)*full_state_dict=True"):
            read_checkpoint(CheckpointRequest(path=tmp_path / "w.pt", trust_pickle=trusted))
    finally:
        dist.destroy_process_group()


@pytest.mark.parametrize("factory", [NET, "tests.lit:LitNet"], ids=["the network", "the LightningModule"])
def test_a_lightning_checkpoint_is_read(factory: str, folder: Path) -> None:
    path = folder / "lightning" / "checkpoint.ckpt"
    checkpoint = read(path if path.exists() else trained("lightning", folder / "lightning"), factory)
    assert checkpoint.classes == tuple(CLASS_NAMES)
    assert_answers_as_trained(checkpoint, folder / "lightning" / "samples.npz")
    if factory == NET:
        assert checkpoint.removed_prefixes == ("backbone.",)
        assert any("criterion.weight" in note for note in checkpoint.notes)
    else:
        assert checkpoint.options == {"num_classes": 5, "class_names": CLASS_NAMES, "rate": 1e-3}
        assert json.loads(checkpoint.model_dump_json())["options"] == checkpoint.options


def test_ddp_inside_compile_in_the_middle_of_training_is_read(folder: Path) -> None:
    checkpoint = read(trained("wrapped", folder / "wrapped"))
    assert checkpoint.removed_prefixes == ("_orig_mod.", "module.")
    assert checkpoint.found_under == "state_dict"
    assert_answers_as_trained(checkpoint, folder / "wrapped" / "samples.npz")


def test_shards_of_two_ranks_are_read_as_one_network(sharded: Path) -> None:
    assert len(list(sharded.glob("*.distcp"))) == 2
    checkpoint = read(sharded)
    assert (checkpoint.format, checkpoint.found_under, checkpoint.name) == ("distributed", "model", "checkpoint")
    assert checkpoint.digest == sha256_folder(sharded)
    assert checkpoint.size == sum(path.stat().st_size for path in sharded.iterdir())
    assert checkpoint.classes == tuple(CLASS_NAMES)
    assert_answers_as_trained(checkpoint, sharded.parent / "samples.npz")


def test_the_optimizer_is_not_read(sharded: Path) -> None:
    content = read_sharded(sharded)
    assert set(content) == {"model", "epoch", "classes"}


def test_lightning_s_facts_beside_the_shards_are_read(copy: Path) -> None:
    torch.save({"hyper_parameters": {"num_classes": 5}, "epoch": 7}, copy / "meta.pt")
    content = read_stored(copy).content
    assert (content["hyper_parameters"], content["epoch"]) == ({"num_classes": 5}, 3)


def refusal(path: Path) -> str:
    with pytest.raises(UsageError) as caught:
        read(path)
    return str(caught.value)


def test_a_missing_shard_is_named(copy: Path) -> None:
    (copy / "__1_0.distcp").unlink()
    assert "lacks the shard __1_0.distcp, of 2" in refusal(copy)


def test_a_shard_that_is_cut_short_is_named(copy: Path) -> None:
    shard = copy / "__1_0.distcp"
    shard.write_bytes(shard.read_bytes()[:100])
    assert f"{shard} is truncated or damaged" in refusal(copy)


def test_a_shard_with_changed_bytes_is_refused(copy: Path) -> None:
    shard = copy / "__0_0.distcp"
    shard.write_bytes(bytes(shard.stat().st_size))
    assert f"{copy} is truncated or damaged" in refusal(copy)


def test_shards_that_do_not_cover_a_tensor_are_refused(copy: Path) -> None:
    metadata = pickle.loads((copy / ".metadata").read_bytes())  # noqa: TID251 - written by this test's own training
    metadata.state_dict_metadata["model.head.weight"].chunks.pop()
    (copy / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "the shards of 'model.head.weight' hold 24 of 40 elements" in refusal(copy)


def test_a_shard_outside_the_folder_is_refused(copy: Path) -> None:
    metadata = pickle.loads((copy / ".metadata").read_bytes())  # noqa: TID251 - written by this test's own training
    for info in metadata.storage_data.values():
        info.relative_path = f"../{info.relative_path}"
    (copy / ".metadata").write_bytes(pickle.dumps(metadata))
    assert "lies outside the folder" in refusal(copy)


def test_shards_without_metadata_are_refused(copy: Path) -> None:
    (copy / ".metadata").unlink()
    assert "without their .metadata" in refusal(copy)


@pytest.mark.parametrize("data", [b"", b"plan", pickle.dumps({"a": 1})], ids=["empty", "noise", "another value"])
def test_damaged_metadata_is_refused(data: bytes, copy: Path) -> None:
    (copy / ".metadata").write_bytes(data)
    assert "is truncated or damaged" in refusal(copy)


class Evil:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, witness: Path) -> None:
        self.witness = witness

    def __reduce__(self) -> tuple[object, ...]:
        return Path.touch, (self.witness,)


def test_metadata_that_would_run_code_is_refused_and_does_not(copy: Path, tmp_path: Path) -> None:
    (copy / ".metadata").write_bytes(pickle.dumps(Evil(tmp_path / "witness")))
    assert "needs another type than a table of shards does" in refusal(copy)
    assert not (tmp_path / "witness").exists()


def test_deepspeed_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "zero_to_fp32.py").touch()
    assert "zero_to_fp32.py" in refusal(tmp_path)


def peak_of_joining(path: Path) -> int:
    """The most memory that the process held once the weights were joined, in bytes."""
    assert read_stored(path).content["model"]["weight"].numel()
    return own_peak_memory()


@pytest.mark.slow
def test_joining_shards_holds_one_copy(folder: Path) -> None:
    megabytes = 400
    path = trained("large", folder / "large", str(megabytes), ranks=2)
    small = trained("large", folder / "small", "4", ranks=2)
    least, most = (run_alone("join", peak_of_joining, where).value for where in (small, path))
    assert 0.9 < (most - least) / (megabytes * 1e6) < 1.6  # the tensor and one of its two shards
