"""Examples for each command's `--help` and for docs/commands.md, in one place so that a test can parse them all.

Owns the lines only. Shown by the command line (`deploy.cli.main`), written into the reference by scripts/write_docs.py.
"""

EXAMPLES: dict[str, tuple[str, ...]] = {
    "inspect": (
        "deployctl inspect model.pt",
        "deployctl inspect model.pt --factory training.nets:build --input-shape 3,64,64 --json",
    ),
    "package": (
        "deployctl package model.pt --samples samples.npz --labels labels.txt",
        "deployctl package model.pt --config deploy.toml --dry-run",
        "deployctl package model.pt --name pets --formats onnx --max-batch 16 --slo-p99-ms 15",
        "deployctl package model.pt --precision int8 --samples labelled.npz --max-drop 0.5",
        "deployctl package model.pt --name pets --target 26.08-cuda-sm90",
        "deployctl package ./llm-checkpoint --backend vllm --target 26.08-cuda-sm90 --gpu H100-80GB --context 8192",
        "deployctl package ./llm-checkpoint --backend vllm --adapter support=./adapters/support --dry-run",
    ),
    "verify": (
        "deployctl verify model_repository",
        "deployctl verify model_repository pets:2 --static",
        "deployctl verify model_repository pets:2 --static --target 26.08-cuda-sm90",
        "deployctl verify model_repository pets --static --signature --public-key signing.pub",
    ),
    "promote": (
        "deployctl promote model_repository pets:2",
        "deployctl promote model_repository pets:2 --environment environments/production.toml",
        "deployctl promote model_repository pets:2 --url localhost:8001",
    ),
    "rollback": (
        "deployctl rollback model_repository pets",
        "deployctl rollback model_repository pets --to 1",
        "deployctl rollback model_repository pets --url localhost:8001",
    ),
    "diff": (
        "deployctl diff model_repository pets promoted 2 --samples samples.npz --max-flips 0.02 --max-slowdown 1.1",
        "deployctl diff model_repository pets 1 2 --no-latency --markdown diff.md",
    ),
    "sign": (
        "deployctl sign model_repository pets --key signing.key",
        "deployctl sign model_repository pets:2 --key locked.key --password-env SIGNING_PASSWORD",
        "deployctl sign model_repository pets:2 --key release.key --certificate release.pem --chain between.pem",
    ),
    "publish": (
        "deployctl publish model_repository pets:2 s3://models/production",
        "deployctl publish model_repository pets /mnt/models --renumber --promote",
    ),
    "pull": ("deployctl pull s3://models/production pets:2 model_repository",),
    "report": ("deployctl report model_repository pets:2 --output pets.html",),
    "engine install": (
        "deployctl engine install",
        "deployctl engine install --from nvidia_pytriton.whl",
    ),
    "engine list": ("deployctl engine list --json",),
    "serve": (
        "deployctl serve model_repository",
        "deployctl serve model_repository pets:2 --grpc-port 8001",
    ),
    "bench": (
        "deployctl bench model_repository pets --checkpoint model.pt",
        "deployctl bench model_repository pets:2 --compare 1 --max-slowdown 1.1",
    ),
    "slo": (
        "deployctl slo pets --url localhost:8001 --rate 200 --p99-ms 15 --repository model_repository",
        "deployctl slo pets:2 --config deploy.toml --repository model_repository --junit slo.xml --markdown slo.md",
        "deployctl slo pets --url localhost:8001 --rate 50 --p99-ms 15 --samples samples.npz --find-rate",
        "deployctl slo chat --url localhost:8000 --llm --rate 2 --ttft-p99-ms 800 --itl-p99-ms 60 --tokens 64",
    ),
    "tune": (
        "deployctl tune model_repository pets --p99-ms 15",
        "deployctl tune model_repository pets --p99-ms 15 --trials 40 --dry-run",
    ),
    "cache list": ("deployctl cache list",),
    "cache prune": (
        "deployctl cache prune",
        "deployctl cache prune --unused-days 30 --max-mb 500",
    ),
    "targets": (
        "deployctl targets",
        "deployctl targets 26.08-cuda-sm90",
    ),
    "doctor": ("deployctl doctor --json",),
    "docker": (
        "deployctl docker model_repository pets --target 26.08-cpu --p99-ms 15 --output serving",
        "deployctl docker model_repository --slo deploy.toml --output serving",
    ),
    "k8s": (
        "deployctl k8s model_repository pets --output pets-k8s --image registry.example.com/pets-server:1 --p99-ms 15",
        "deployctl k8s model_repository pets:2 --output pets-k8s --target 26.08-cpu --models pvc://models",
        "deployctl k8s model_repository pets:2 --config deploy.toml --output pets-k8s",
    ),
}


def as_epilog(name: str) -> str | None:
    """The examples of a command as click prints them below its options, None where there are none."""
    lines = [line for key, given in EXAMPLES.items() if key.split()[0] == name for line in given]
    return "\n".join(("\b", "Examples:", *(f"  {line}" for line in lines))) if lines else None
