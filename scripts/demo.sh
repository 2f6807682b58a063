#!/usr/bin/env bash
# The whole pipe once, on real images: fine-tune, inspect, package, serve in a real Triton, classify.
# `make demo` runs it with the venv first on PATH; everything it writes lies in the folder given (default .demo).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

demo=${1:-.demo}
name=digits_resnet18
training=$demo/training
repository=$demo/model_repository
server_log=$demo/server.log
server=

say() { printf '\n== %s\n' "$*"; }
run() {
    printf '$ %s\n' "$*"
    "$@"
}
# SIGTERM, since a shell without job control starts its background jobs deaf to SIGINT.
stop_server() { [ -z "$server" ] || { kill -TERM "$server" 2>/dev/null && wait "$server" || true; }; }
trap stop_server EXIT

say "1/5 Fine-tune: a seeded ResNet-18, its last stage and a new head trained on handwritten digits"
run python examples/finetune.py --out "$training"

say "2/5 Inspect: what deployctl reads from the bare state_dict"
run deployctl inspect "$training/$name.pt" --input-shape 3,64,64

say "3/5 Package: convert, prove against float64, measure, serve from the stage, publish"
run deployctl package "$training/$name.pt" --repository "$repository" --input-shape 3,64,64 \
    --samples "$training/samples.npz" --labels "$training/labels.txt" --promote

say "4/5 Serve: a real tritonserver on the published repository"
grpc_port=$(python -c 'import socket; s = socket.socket(); s.bind(("127.0.0.1", 0)); print(s.getsockname()[1])')
printf '$ deployctl serve %s --grpc-port %s >%s &\n' "$repository" "$grpc_port" "$server_log"
deployctl serve "$repository" --grpc-port "$grpc_port" >"$server_log" 2>&1 &
server=$!

say "5/5 Classify: 450 images the network has never seen, asked over gRPC"
run python examples/classify.py --url "localhost:$grpc_port" --model "$name" || {
    tail -n 20 "$server_log" >&2
    exit 1
}

version=$(find "$repository/$name" -mindepth 1 -maxdepth 1 -regex '.*/[0-9]+' | sort -V | tail -n 1)
say "Done. What to look at next"
cat <<END
look at   $version/
            manifest.json   digests, contract, build environment, verdicts
            evidence/       parity, latency and served parity with every number; report.html shows them
            config.pbtxt    what Triton was told
          $server_log: where it listened, and a client to copy
run       .venv/bin/deployctl serve $repository
          .venv/bin/deployctl verify $repository
          .venv/bin/deployctl slo $name --url localhost:PORT --rate 20 --p99-ms 250 --repository $repository
read      docs/architecture.md: how a version becomes proven; docs/slo.md: what a latency verdict means
END
