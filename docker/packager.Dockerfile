# syntax=docker/dockerfile:1
# Rendered by `deployctl docker`: change what it is rendered from, and render it again.
#   docker build --file packager.Dockerfile --build-context deployctl=SOURCE --tag deployctl-packager .
FROM nvcr.io/nvidia/pytorch:26.08-py3

SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# hadolint ignore=DL3022
COPY --from=deployctl pyproject.toml README.md LICENSE /opt/deployctl/
# hadolint ignore=DL3022
COPY --from=deployctl deploy /opt/deployctl/deploy
# An archive runs on the torch that compiled it: the image's own, which no dependency may replace.
RUN before="$(python3 -c 'import torch; print(torch.__version__)')" \
    && pip install --no-cache-dir /opt/deployctl \
    && test "$(python3 -c 'import torch; print(torch.__version__)')" = "$before"

RUN install --directory --owner=1000 --group=1000 /work /home/deployctl
ENV HOME=/home/deployctl
USER 1000:1000
WORKDIR /work
ENTRYPOINT ["deployctl"]
CMD ["--help"]
