# A tritonserver with a published repository inside. Build it beside the repository:
#   docker build -f docker/server.Dockerfile -t digits-server:1 .demo
# The release is one of deploy/data/targets.json; package with `--target 26.08-cpu` for it.
FROM nvcr.io/nvidia/tritonserver:26.08-py3

COPY --chown=0:0 model_repository /models

# The image's own user `triton-server`. The models belong to root: what runs cannot change what is served.
USER 1000

EXPOSE 8000 8001 8002
ENTRYPOINT ["/opt/tritonserver/bin/tritonserver"]
# Load everything once, fail on what does not load, guess nothing: the configs are complete.
CMD ["--model-repository=/models", \
     "--model-control-mode=none", \
     "--exit-on-error=true", \
     "--strict-readiness=true", \
     "--disable-auto-complete-config", \
     "--exit-timeout-secs=30"]
