#!/usr/bin/env bash
# Finds the OCI registry that tests publish to, or installs Debian's docker-registry where this user may.
set -euo pipefail

if found=$(command -v docker-registry); then
    echo "registry: $found"
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo -n)
fi
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends docker-registry >/dev/null
    # The package starts a service of its own, which nobody here needs.
    if [ -d /run/systemd/system ]; then
        "${as_root[@]}" systemctl disable --now --quiet docker-registry || true
    fi
    echo "registry: $(command -v docker-registry)"
    exit 0
fi

echo "error: docker-registry is not on PATH, and this user may not install it" >&2
echo "  to do:    install it, for example by 'apt-get install docker-registry' as root" >&2
exit 3
