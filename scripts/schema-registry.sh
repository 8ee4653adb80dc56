#!/usr/bin/env bash
# A schema registry without Docker: Apicurio Registry, which answers as Confluent's does, for tests and for trying things out.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: scripts/schema-registry.sh install              install the registry once
       scripts/schema-registry.sh start DIR            start one with its log in DIR, print its variable
       scripts/schema-registry.sh stop DIR             stop the registry of DIR
       scripts/schema-registry.sh run COMMAND [ARGS]   run COMMAND with a registry of its own, which goes with it

The port is a free one. `start` prints an export line:
    eval "$(scripts/schema-registry.sh start /tmp/registry)"
    curl "$SCHEMA_REGISTRY_URL/subjects"
Its schemas are in memory and go with it. The jars are kept in ${MILLSTREAM_CACHE:-$HOME/.cache/millstream}/schema-registry.
Exit code 3: it cannot be installed here.
TEXT
    exit 2
}

name=schema-registry
# Runs on Java 17; 3.3 wants 21.
version=3.0.9
process=java
cache=${MILLSTREAM_CACHE:-${HOME:?}/.cache/millstream}/schema-registry
jars=$cache/apicurio-$version
# shellcheck source=scripts/server-common.sh
. "$(dirname "$0")/server-common.sh"

installed() { [ -e "$jars/complete" ]; }

fetch() {
    command -v mvn >/dev/null || die "Maven is not installed, and the registry comes as a Maven artifact" 3
    say "fetching Apicurio Registry $version, once"
    local fresh
    fresh=$(mktemp -d "$cache/fetch.XXXXXX")
    cat >"$fresh/pom.xml" <<TEXT
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>millstream</groupId><artifactId>schema-registry</artifactId><version>1</version>
</project>
TEXT
    mkdir "$fresh/jars"
    if ! mvn -q -B -f "$fresh/pom.xml" dependency:copy "-Dartifact=io.apicurio:apicurio-registry-app:$version:tar.gz:all" \
        "-DoutputDirectory=$fresh" >&2 ||
        ! tar -xzf "$fresh/apicurio-registry-app-$version-all.tar.gz" -C "$fresh/jars"; then
        rm -rf "$fresh"
        die "the registry could not be fetched: see above" 3
    fi
    touch "$fresh/jars/complete"
    rm -rf "$jars"
    mv "$fresh/jars" "$jars"
    rm -rf "$fresh"
}

url_of() { echo "http://127.0.0.1:$(port_of "$1")/apis/ccompat/v7"; }

variables() { echo "export SCHEMA_REGISTRY_URL=$(url_of "$1")"; }

serve() {
    local dir=$1
    command -v java >/dev/null || die "Java is not installed" 3
    if [ ! -e "$dir/$name.port" ]; then free_ports "$dir" 1 >/dev/null; fi
    launch "$dir" java -Xmx384m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -Dquarkus.http.host=127.0.0.1 \
        "-Dquarkus.http.port=$(port_of "$dir")" -jar "$jars/apicurio-registry-app-$version-runner.jar"
    wait_until "$dir" curl -sf -o /dev/null "$(url_of "$dir")/subjects"
    say "Apicurio Registry $version serves at $(url_of "$dir"), log in $dir"
}

main "$@"
