#!/usr/bin/env bash
# One release: a checkpoint becomes a version, passes its gates, and is promoted in production.
#
#   release.sh CHECKPOINT
#
# Each step is one deployctl command. The first that does not end with 0 ends the release with its exit code: 1 is a "no"
# (running it again changes nothing: the model or the limits must change), 2 wrong use, 3 something is missing on this
# machine, 4 work that could not be finished and may be tried again. Nothing reaches production before the last step.
#
#   PRODUCTION  the repository that production serves: a folder, s3://, gs://, az:// or oci:// ([publish] to of CONFIG)
#   FIRST    set to 1 for the first release of a model, when there is nothing in production to compare it with
#   CONFIG   the team's deploy.toml: the model's name, its promises, what production demands (deploy.toml)
#   MODELS   the folder in which the version is made and proven (model_repository)
#   OUT      where the reports go: summary.md, steps.xml and slo.xml as JUnit, report.html, a .json per step (release)
#   SLO_URL  HOST:PORT of a staging server that serves the version; where it is not set, one is started here
#   SIGNING_KEY  the file of the key that signs; where it is not set, nothing is signed
set -euo pipefail

checkpoint=${1:?usage: release.sh CHECKPOINT}
config=${CONFIG:-deploy.toml}
models=${MODELS:-model_repository}
out=${OUT:-release}
model=$(python3 -c 'import sys, tomllib; print(tomllib.load(open(sys.argv[1], "rb"))["package"]["name"])' "$config")
production=${PRODUCTION:-$(python3 -c '
import os, sys, tomllib
to = tomllib.load(open(sys.argv[1], "rb")).get("publish", {}).get("to", "")
print(to if "://" in to or not to else os.path.join(os.path.dirname(sys.argv[1]), to))' "$config")}
: "${production:?set PRODUCTION, or [publish] to in $config: the repository that production serves}"
version=
server=
cases=
failed=0
broken=0

# step NAME COMMAND...: runs the command, notes how it ended, and ends the release unless it passed.
step() {
    local name=$1 code=0 begun=$SECONDS outcome=
    shift
    printf '\n== %s\n$ %s\n' "$name" "$*" >&2
    "$@" || code=$?
    case $code in
        0) ;;
        1) failed=1 outcome='<failure message="the verdict is no, or undecided"/>' ;;
        *) broken=1 outcome="<error message=\"exit code $code\"/>" ;;
    esac
    cases+="<testcase classname=\"release\" name=\"$name\" time=\"$((SECONDS - begun))\">$outcome</testcase>"
    printf '| %s | %s |\n' "$name" "$code" >>"$out/summary.md"
    [ "$code" -eq 0 ] || {
        printf '\nthe release stopped at %s with exit code %s\n' "$name" "$code" >&2
        exit "$code"
    }
}

# field FILE KEY...: what lies under the keys in a file that a command wrote with --json.
field() {
    python3 -c '
import functools, json, sys
pick = lambda found, key: found[int(key) if key.isdigit() else key]
print(functools.reduce(pick, sys.argv[2:], json.load(open(sys.argv[1]))))' "$@"
}

start_server() {
    deployctl serve "$models" "$version" --json >"$out/server.json" 2>"$out/server.log" &
    server=$!
    until field "$out/server.json" grpc >/dev/null 2>&1; do
        kill -0 "$server" 2>/dev/null || { wait "$server" && return 4 || return; }
        sleep 0.2
    done
}

# However the release ends: the server is stopped, and what was learnt is there to read.
finish() {
    if [ -n "$server" ]; then
        kill -TERM "$server" 2>/dev/null || true
        wait "$server" || true
    fi
    if [ -n "$version" ]; then
        deployctl report "$models" "$version" --output "$out/report.html" >/dev/null || true
    fi
    printf '<testsuites><testsuite name="release" failures="%s" errors="%s">%s</testsuite></testsuites>\n' \
        "$failed" "$broken" "$cases" >"$out/steps.xml"
    for part in slo diff; do
        if [ -f "$out/$part.md" ]; then
            { echo && cat "$out/$part.md"; } >>"$out/summary.md"
        fi
    done
}

mkdir -p "$out"
printf '# Release of %s\n\n| step | exit code |\n| --- | --- |\n' "$(basename "$checkpoint")" >"$out/summary.md"
trap finish EXIT

if [ -z "${FIRST:-}" ]; then
    step pull deployctl pull "$production" "$model" "$models" --json >"$out/pull.json"
    # What production serves is what the new version is compared with, and what it is promoted instead of.
    step base deployctl promote "$models" "$model:$(field "$out/pull.json" number)" --json >"$out/base.json"
fi

step package deployctl package "$checkpoint" --config "$config" --repository "$models" --json >"$out/package.json"
number=$(field "$out/package.json" published 0 version)
version=$model:$number

[ -n "${SLO_URL:-}" ] || step serve start_server
step slo deployctl slo "$version" --config "$config" --repository "$models" --json \
    --url "${SLO_URL:-$(field "$out/server.json" grpc)}" --junit "$out/slo.xml" --markdown "$out/slo.md" >"$out/slo.json"

if [ -z "${FIRST:-}" ]; then
    step diff deployctl diff "$models" "$model" promoted "$number" --config "$config" --json \
        --markdown "$out/diff.md" >"$out/diff.json"
fi

if [ -n "${SIGNING_KEY:-}" ]; then
    step sign deployctl sign "$models" "$version" --config "$config" --key "$SIGNING_KEY" --json \
        >"$out/sign.json"
fi

# Whether it meets what production demands is decided here, and only then is it sent.
step promote deployctl promote "$models" "$version" --environment "$config" --json >"$out/promote.json"
step publish deployctl publish "$models" "$version" "$production" --promote --json >"$out/publish.json"
