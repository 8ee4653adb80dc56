#!/usr/bin/env bash
# A real MinIO server without Docker, for tests and for trying things out.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: scripts/minio.sh build                      build the server once, print where it lies
       scripts/minio.sh start DIR [PORT] [BUCKET]  start a server with its data in DIR, print its variables
       scripts/minio.sh stop DIR                   stop the server of DIR; its data stays
       scripts/minio.sh run COMMAND [ARGS...]      run COMMAND with a server of its own, which goes with it

PORT is a free one unless given, BUCKET is "millstream". `start` prints export lines:
    eval "$(scripts/minio.sh start /tmp/minio)"
The binary is kept in ${MILLSTREAM_CACHE:-$HOME/.cache/millstream}/minio. Exit code 3: it cannot be built here.
TEXT
    exit 2
}

# RELEASE.2025-09-07T16-13-09Z, the release that minio-compose.yml pins.
version=v0.0.0-20250907161309-07c3a429bfed
cache=${MILLSTREAM_CACHE:-${HOME:?}/.cache/millstream}/minio
binary=$cache/minio
user=millstream
password=millstream-secret
region=us-east-1

say() { echo "minio.sh: $*" >&2; }
die() { say "$1"; exit "${2:-1}"; }

# Whether the binary is there, and of the right version as far as that can be told.
have_binary() {
    [ -x "$binary" ] || return 1
    command -v go >/dev/null || return 0
    go version -m "$binary" 2>/dev/null | grep -q "github.com/minio/minio[[:space:]]$version"
}

build() {
    have_binary && return
    command -v go >/dev/null || die "Go is not installed, and MinIO is built from its source.
    Install Go 1.24 or newer (https://go.dev/dl), or start MinIO otherwise (docker compose -f minio-compose.yml up)." 3
    mkdir -p "$cache"
    # Two at once: the second waits and finds the first one's binary.
    if command -v flock >/dev/null; then
        exec 9>"$cache/lock"
        flock 9
        have_binary && { exec 9>&-; return; }
    fi
    say "building MinIO ($version), once; this takes some minutes"
    local fresh
    fresh=$(mktemp -d "$cache/build.XXXXXX")
    if ! CGO_ENABLED=0 GOBIN=$fresh go install "github.com/minio/minio@$version" >&2; then
        rm -rf "$fresh"
        die "MinIO could not be built: see above (Go 1.24 or newer and access to the Go module proxy are needed)" 3
    fi
    mv "$fresh/minio" "$binary"
    rm -rf "$fresh"
    if command -v flock >/dev/null; then exec 9>&-; fi
}

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

free_port() {
    local port
    for _ in $(seq 100); do
        port=$((20000 + RANDOM % 12000))
        port_is_free "$port" && { echo "$port"; return; }
    done
    die "no free port found"
}

pid_of() {
    local pid
    pid=$(cat "$1/minio.pid" 2>/dev/null) || return 1
    # The number may belong to another process by now.
    [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null || ps -o comm= -p "$pid" 2>/dev/null)" = minio ] && echo "$pid"
}

variables() {
    local port
    port=$(cat "$1/minio.port")
    cat <<TEXT
export AWS_ENDPOINT_URL=http://127.0.0.1:$port
export AWS_ACCESS_KEY_ID=$user
export AWS_SECRET_ACCESS_KEY=$password
export AWS_REGION=$region
export MILLSTREAM_TEST_S3=http://127.0.0.1:$port
TEXT
}

make_bucket() {
    local status tries=0
    while :; do
        status=$(curl -s -o "$dir/minio.reply" -w '%{http_code}' -X PUT --aws-sigv4 "aws:amz:$region:s3" --user "$user:$password" \
            "http://127.0.0.1:$1/$2")
        # 503: it answers, but has not finished starting.
        tries=$((tries + 1))
        if [ "$status" != 503 ] || [ "$tries" -ge 50 ]; then break; fi
        sleep 0.2
    done
    # 409: it is there from an earlier start.
    case $status in 200 | 409) ;; *) die "the bucket $2 could not be created (HTTP $status): $(cat "$dir/minio.reply")" ;; esac
    rm -f "$dir/minio.reply"
}

start() {
    local port=${2:-} bucket=${3:-millstream} pid launcher
    dir=$1
    command -v curl >/dev/null || die "curl is not installed"
    # A session of its own: Ctrl-C at the caller must not reach it before the caller has finished.
    launcher=$(command -v setsid || command -v nohup)
    build
    mkdir -p "$dir/data"
    dir=$(cd "$dir" && pwd)
    if pid_of "$dir" >/dev/null; then
        say "a server of $dir runs already"
        make_bucket "$(cat "$dir/minio.port")" "$bucket"
        variables "$dir"
        return
    fi
    if [ -n "$port" ]; then
        port_is_free "$port" || die "port $port is taken"
    else
        port=$(free_port)
    fi
    MINIO_ROOT_USER=$user MINIO_ROOT_PASSWORD=$password MINIO_PROMETHEUS_AUTH_TYPE=public MINIO_BROWSER=off MINIO_UPDATE=off \
        "$launcher" "$binary" server "$dir/data" --address "127.0.0.1:$port" --quiet </dev/null >"$dir/minio.log" 2>&1 9>&- &
    pid=$!
    echo "$pid" >"$dir/minio.pid"
    echo "$port" >"$dir/minio.port"
    for _ in $(seq 300); do
        if [ "$(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$port/minio/health/live" || true)" = 200 ]; then
            make_bucket "$port" "$bucket"
            say "MinIO serves s3://$bucket at http://127.0.0.1:$port, data and log in $dir"
            variables "$dir"
            return
        fi
        kill -0 "$pid" 2>/dev/null || die "MinIO ended at once: $(tail -n 5 "$dir/minio.log")"
        sleep 0.1
    done
    kill "$pid"
    die "MinIO did not answer within 30 s: $(tail -n 5 "$dir/minio.log")"
}

stop() {
    local pid
    pid=$(pid_of "$1") || { say "no server of $1 runs"; return; }
    kill "$pid"
    for _ in $(seq 100); do
        pid_of "$1" >/dev/null || break
        sleep 0.1
    done
    if pid_of "$1" >/dev/null; then kill -9 "$pid"; fi
    rm -f "$1/minio.pid" "$1/minio.port"
}

run() {
    local place exports
    place=$(mktemp -d "${TMPDIR:-/tmp}/millstream-minio.XXXXXX")
    # shellcheck disable=SC2064 # the folder of now is meant
    trap "stop '$place'; rm -rf '$place'" EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    exports=$(start "$place")
    eval "$exports"
    "$@"
}

[ $# -ge 1 ] || usage
command=$1
shift
case $command in
build) [ $# -eq 0 ] || usage; build; echo "$binary" ;;
start) [ $# -ge 1 ] && [ $# -le 3 ] || usage; start "$@" ;;
stop) [ $# -eq 1 ] || usage; stop "$1" ;;
run) [ $# -ge 1 ] || usage; run "$@" ;;
*) usage ;;
esac
