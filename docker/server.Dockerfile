# syntax=docker/dockerfile:1
# Rendered by `deployctl docker`: change what it is rendered from, and render it again.
#   docker build --file server.Dockerfile --build-context repository=REPOSITORY --tag digits-resnet18-server:1 .
FROM nvcr.io/nvidia/tritonserver:26.08-py3

LABEL io.deployctl.version.digits_resnet18="1@sha256:16e314753b671b646fe3f54ef9ff77c41f02dd74095844ffb83f8535f5836c3a"
# Owned by root and writable by nobody: what serves cannot change what is served.
# hadolint ignore=DL3022
COPY --from=repository --chown=0:0 --chmod=0555 digits_resnet18/1/labels.txt digits_resnet18/1/model.onnx /models/digits_resnet18/1/
# hadolint ignore=DL3022
COPY --from=repository --chown=0:0 --chmod=0555 digits_resnet18/warmup/42bd22a7ff7abb6fc4b3a3acd20c9a5d7900742b1fc8b229c19b22af9e0fde3e /models/digits_resnet18/warmup/
COPY --chown=0:0 --chmod=0555 models /models
COPY --chown=0:0 --chmod=0444 models.sha256 /opt/deployctl/models.sha256
WORKDIR /models
# What was rendered from is what is built: each file by its digest.
RUN sha256sum --check --strict --quiet /opt/deployctl/models.sha256

# The image's own user `triton-server`. It writes to /tmp alone, and loads an archive's library from there:
# with a read-only root give it a /tmp that is writable and not noexec.
USER 1000:1000
EXPOSE 8000 8001 8002
HEALTHCHECK --interval=10s --timeout=5s --start-period=300s --retries=3 \
    CMD ["python3", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:8000/v2/health/ready', timeout=4)"]
# A signal ends the server and not a shell; requests that run have --exit-timeout-secs to end.
ENTRYPOINT ["/opt/tritonserver/bin/tritonserver"]
CMD [ \
    "--disable-auto-complete-config", \
    "--model-repository=/models", \
    "--model-control-mode=none", \
    "--exit-on-error=true", \
    "--strict-readiness=true", \
    "--model-load-thread-count=4", \
    "--exit-timeout-secs=30", \
    "--http-address=0.0.0.0", \
    "--http-port=8000", \
    "--http-thread-count=8", \
    "--grpc-address=0.0.0.0", \
    "--grpc-port=8001", \
    "--allow-metrics=true", \
    "--metrics-address=0.0.0.0", \
    "--metrics-port=8002", \
    "--allow-gpu-metrics=false", \
    "--log-format=ISO8601", \
    "--metrics-config=histogram_latencies=true" \
]
