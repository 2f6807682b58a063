# Sourced by the install scripts: installs a package of Debian where this user may.

# from_debian PACKAGE [SERVICE ...]: false where this user may not; the services that the package starts are ended.
from_debian() {
    local package=$1
    local as_root=()
    shift
    if [ "$(id -u)" -ne 0 ]; then
        as_root=(sudo -n)
    fi
    if ! command -v apt-get >/dev/null || ! "${as_root[@]}" true 2>/dev/null; then
        return 1
    fi
    export DEBIAN_FRONTEND=noninteractive
    "${as_root[@]}" apt-get update -qq || exit
    "${as_root[@]}" apt-get install -y -qq --no-install-recommends "$package" >/dev/null || exit
    if [ $# -gt 0 ] && [ -d /run/systemd/system ]; then
        "${as_root[@]}" systemctl disable --now --quiet "$@" || true
    fi
}
