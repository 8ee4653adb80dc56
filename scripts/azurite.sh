#!/usr/bin/env bash
# Azurite without Docker: Azure's own emulator of its blob storage, for tests and for trying things out.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: scripts/azurite.sh install              install the server once
       scripts/azurite.sh start DIR            start a server with its data in DIR, print its variables
       scripts/azurite.sh stop DIR             stop the server of DIR; its data stays
       scripts/azurite.sh run COMMAND [ARGS]   run COMMAND with a server of its own, which goes with it

The port is a free one, the container is "millstream". `start` prints export lines:
    eval "$(scripts/azurite.sh start /tmp/azurite)"
It is kept in ${MILLSTREAM_CACHE:-$HOME/.cache/millstream}/azurite. Exit code 3: it cannot be installed here.
TEXT
    exit 2
}

name=azurite
process=node
version=3.37.0
cache=${MILLSTREAM_CACHE:-${HOME:?}/.cache/millstream}/azurite
package=$cache/$version
# Those that every emulator has, known to everybody.
account=devstoreaccount1
key=Eby8vdM02xNOcqFlqUwJPLlmEtlCDXJ1OUzFT50uSRZ6IFsuFq2UVErCz4I6tq/K1SZFPTOtr/KBHBeksoGMGw==
# shellcheck source=scripts/server-common.sh
. "$(dirname "$0")/server-common.sh"

installed() { [ -d "$package" ]; }

fetch() {
    command -v npm >/dev/null || die "Node.js with npm is not installed, and Azurite is a package of npm" 3
    say "fetching Azurite $version, once"
    local fresh
    fresh=$(mktemp -d "$cache/fetch.XXXXXX")
    if ! npm install --prefix "$fresh" --no-audit --no-fund --omit=dev --silent "azurite@$version" >&2; then
        rm -rf "$fresh"
        die "Azurite could not be fetched: see above" 3
    fi
    mv "$fresh" "$package"
}

variables() {
    local port
    port=$(port_of "$1")
    cat <<TEXT
export AZURE_STORAGE_ACCOUNT_NAME=$account
export AZURE_STORAGE_ACCOUNT_KEY=$key
export AZURE_ENDPOINT=http://127.0.0.1:$port/$account
export MILLSTREAM_TEST_AZURITE=http://127.0.0.1:$port/$account
TEXT
}

# Creates the container: curl cannot sign as Azure wants it.
make_container() {
    node - "$1" "$account" "$key" <<'JS'
const [port, account, key] = process.argv.slice(2);
const { createHmac } = require("crypto");
const date = new Date().toUTCString();
const headers = { "x-ms-date": date, "x-ms-version": "2023-11-03" };
const text = ["PUT", "", "", "", "", "", "", "", "", "", "", "", `x-ms-date:${date}`, "x-ms-version:2023-11-03",
    `/${account}/${account}/millstream`, "restype:container"].join("\n");
headers.Authorization = `SharedKey ${account}:${createHmac("sha256", Buffer.from(key, "base64")).update(text).digest("base64")}`;
fetch(`http://127.0.0.1:${port}/${account}/millstream?restype=container`, { method: "PUT", headers }).then(async (reply) => {
    // 409: it is there from an earlier start.
    if (![201, 409].includes(reply.status)) {
        console.error(`the container could not be created (HTTP ${reply.status}): ${await reply.text()}`);
        process.exit(1);
    }
});
JS
}

answers() { [ "$(curl -s -o /dev/null -w '%{http_code}' "http://127.0.0.1:$1/$account?comp=list")" = 403 ]; }

serve() {
    local dir=$1 port
    port=$(free_ports "$dir" 1)
    launch "$dir" node "$package/node_modules/azurite/dist/src/blob/main.js" --blobHost 127.0.0.1 --blobPort "$port" \
        --location "$dir/data" --skipApiVersionCheck --silent --disableTelemetry
    wait_until "$dir" answers "$port"
    make_container "$port" || die "see above"
    say "Azurite serves az://millstream at http://127.0.0.1:$port/$account, data and log in $dir"
}

main "$@"
