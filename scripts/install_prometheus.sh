#!/usr/bin/env bash
# Finds the Prometheus and promtool that tests check rules and queries with, or installs Debian's where this user may.
set -euo pipefail

if found=$(command -v prometheus) && command -v promtool >/dev/null; then
    echo "prometheus: $found"
    exit 0
fi

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo -n)
fi
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends prometheus >/dev/null
    # The package starts a service of its own, which nobody here needs.
    if [ -d /run/systemd/system ]; then
        "${as_root[@]}" systemctl disable --now --quiet prometheus prometheus-node-exporter || true
    fi
    echo "prometheus: $(command -v prometheus)"
    exit 0
fi

echo "error: prometheus and promtool are not both on PATH, and this user may not install them" >&2
echo "  to do:    install them, for example by 'apt-get install prometheus' as root" >&2
exit 3
