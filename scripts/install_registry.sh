#!/usr/bin/env bash
# Finds the OCI registry that tests publish to, or installs Debian's docker-registry where this user may.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/from_debian.sh"

if found=$(command -v docker-registry); then
    echo "registry: $found"
    exit 0
fi

# The package starts services of its own, which nobody here needs.
if from_debian docker-registry docker-registry; then
    echo "registry: $(command -v docker-registry)"
    exit 0
fi

echo "error: docker-registry is not on PATH, and this user may not install it" >&2
echo "  to do:    install it, for example by 'apt-get install docker-registry' as root" >&2
exit 3
