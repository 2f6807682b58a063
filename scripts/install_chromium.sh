#!/usr/bin/env bash
# Finds the browser in which tests open report.html, or installs Debian's chromium where this user may.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/from_debian.sh"

for name in chromium chromium-browser google-chrome google-chrome-stable chrome; do
    if found=$(command -v "$name"); then
        echo "browser: $found"
        exit 0
    fi
done

if from_debian chromium; then
    echo "browser: $(command -v chromium)"
    exit 0
fi

echo "error: no Chromium or Chrome is on PATH, and this user may not install one" >&2
echo "  to do:    install it, for example by 'apt-get install chromium' as root" >&2
exit 3
