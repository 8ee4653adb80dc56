#!/usr/bin/env bash
# A real MinIO server without Docker, for tests and for trying things out.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: scripts/minio.sh install              build the server once
       scripts/minio.sh start DIR            start a server with its data in DIR, print its variables
       scripts/minio.sh stop DIR             stop the server of DIR; its data stays
       scripts/minio.sh run COMMAND [ARGS]   run COMMAND with a server of its own, which goes with it

The port is a free one, the bucket is "millstream". `start` prints export lines:
    eval "$(scripts/minio.sh start /tmp/minio)"
The binary is kept in ${MILLSTREAM_CACHE:-$HOME/.cache/millstream}/minio. Exit code 3: it cannot be built here.
TEXT
    exit 2
}

name=minio
process=minio
# RELEASE.2025-09-07T16-13-09Z, the release that minio-compose.yml pins.
version=v0.0.0-20250907161309-07c3a429bfed
cache=${MILLSTREAM_CACHE:-${HOME:?}/.cache/millstream}/minio
binary=$cache/minio
# shellcheck source=scripts/server-common.sh
. "$(dirname "$0")/server-common.sh"

# Of the right version as far as that can be told.
installed() {
    [ -x "$binary" ] || return 1
    command -v go >/dev/null || return 0
    go version -m "$binary" 2>/dev/null | grep -q "github.com/minio/minio[[:space:]]$version"
}

fetch() {
    command -v go >/dev/null || die "Go is not installed, and MinIO is built from its source.
    Install Go 1.24 or newer (https://go.dev/dl), or start MinIO otherwise (docker compose -f minio-compose.yml up)." 3
    say "building MinIO ($version), once; this takes some minutes"
    local fresh
    fresh=$(mktemp -d "$cache/build.XXXXXX")
    if ! CGO_ENABLED=0 GOBIN=$fresh go install "github.com/minio/minio@$version" >&2; then
        rm -rf "$fresh"
        die "MinIO could not be built: see above (Go 1.24 or newer and access to the Go module proxy are needed)" 3
    fi
    mv "$fresh/minio" "$binary"
    rm -rf "$fresh"
}

variables() {
    local port
    port=$(port_of "$1")
    s3_variables "$port"
    echo "export MILLSTREAM_TEST_S3=http://127.0.0.1:$port"
}

# 503 until it has finished starting; 409: the bucket is there from an earlier start.
has_bucket() { case $(s3_status "$1" millstream -X PUT) in 200 | 409) ;; *) return 1 ;; esac; }

serve() {
    local port
    port=$(free_ports "$1" 1)
    MINIO_ROOT_USER=$user MINIO_ROOT_PASSWORD=$password MINIO_PROMETHEUS_AUTH_TYPE=public MINIO_BROWSER=off MINIO_UPDATE=off \
        launch "$1" "$binary" server "$1/data" --address "127.0.0.1:$port" --quiet
    wait_until "$1" has_bucket "$port"
    say "MinIO serves s3://millstream at http://127.0.0.1:$port, data and log in $1"
}

main "$@"
