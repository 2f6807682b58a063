#!/usr/bin/env bash
# Finds the browser in which tests open report.html, or installs Debian's chromium where this user may.
set -euo pipefail

for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do
    if found=$(command -v "$name"); then
        echo "browser: $found"
        exit 0
    fi
done

as_root=()
if [ "$(id -u)" -ne 0 ]; then
    as_root=(sudo -n)
fi
if command -v apt-get >/dev/null && "${as_root[@]}" true 2>/dev/null; then
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -qq
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends chromium >/dev/null
    echo "browser: $(command -v chromium)"
    exit 0
fi

echo "error: no Chromium or Chrome is on PATH, and this user may not install one" >&2
echo "  to do:    install it, for example by 'apt-get install chromium' as root" >&2
exit 3
