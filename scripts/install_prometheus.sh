#!/usr/bin/env bash
# Finds the Prometheus and promtool that tests check rules and queries with, or installs Debian's where this user may.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/from_debian.sh"

if found=$(command -v prometheus) && command -v promtool >/dev/null; then
    echo "prometheus: $found"
    exit 0
fi

# The package starts services of its own, which nobody here needs.
if from_debian prometheus prometheus prometheus-node-exporter; then
    echo "prometheus: $(command -v prometheus)"
    exit 0
fi

echo "error: prometheus and promtool are not both on PATH, and this user may not install them" >&2
echo "  to do:    install them, for example by 'apt-get install prometheus' as root" >&2
exit 3
