#!/usr/bin/env bash
# Apache Kafka without Docker: one real broker (KRaft), for tests and for trying things out.
set -euo pipefail

usage() {
    cat >&2 <<'TEXT'
usage: scripts/kafka.sh install              install the broker once
       scripts/kafka.sh start DIR            start a broker with its data in DIR, print its variables
       scripts/kafka.sh stop DIR             stop the broker of DIR in order; its data stays
       scripts/kafka.sh kill DIR             end it as kill -9 does; `start DIR` brings it back at the same port
       scripts/kafka.sh run COMMAND [ARGS]   run COMMAND with a broker of its own, which goes with it
       scripts/kafka.sh tool NAME [ARGS]     run a tool of Kafka's: topics, groups, transactions, produce, consume

The ports are free ones. `start` prints export lines:
    eval "$(scripts/kafka.sh start /tmp/kafka)"
    scripts/kafka.sh tool topics --bootstrap-server "$KAFKA_BOOTSTRAP" --list
Settings of the broker beyond those of this script: KAFKA_SETTINGS, one NAME=VALUE a line.
The jars are kept in ${MILLSTREAM_CACHE:-$HOME/.cache/millstream}/kafka. Exit code 3: it cannot be installed here.
TEXT
    exit 2
}

name=kafka
version=4.1.1
process=java
cache=${MILLSTREAM_CACHE:-${HOME:?}/.cache/millstream}/kafka
libs=$cache/libs-$version
# shellcheck source=scripts/server-common.sh
. "$(dirname "$0")/server-common.sh"

installed() { [ -e "$libs/complete" ]; }

fetch() {
    command -v mvn >/dev/null || die "Maven is not installed, and Kafka comes as Maven artifacts" 3
    say "fetching Kafka $version, once"
    local fresh
    fresh=$(mktemp -d "$cache/fetch.XXXXXX")
    cat >"$fresh/pom.xml" <<TEXT
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>millstream</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka_2.13</artifactId><version>$version</version></dependency>
    <dependency><groupId>org.apache.kafka</groupId><artifactId>kafka-tools</artifactId><version>$version</version></dependency>
    <dependency><groupId>org.apache.logging.log4j</groupId><artifactId>log4j-slf4j-impl</artifactId><version>2.25.2</version></dependency>
  </dependencies>
</project>
TEXT
    if ! mvn -q -B -f "$fresh/pom.xml" dependency:copy-dependencies -DoutputDirectory="$fresh/libs" >&2; then
        rm -rf "$fresh"
        die "Kafka could not be fetched: see above" 3
    fi
    touch "$fresh/libs/complete"
    rm -rf "$libs"
    mv "$fresh/libs" "$libs"
    rm -rf "$fresh"
}

# java_of MEGABYTES CLASS ARGS: runs a tool of Kafka's, which is to start quickly rather than to run long.
java_of() {
    local megabytes=$1
    shift
    exec java "-Xmx${megabytes}m" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$libs/*" \
        -Dlog4j2.configurationFile="$cache/log4j2.properties" "$@"
}

log_to_stderr() {
    cat >"$cache/log4j2.properties" <<'TEXT'
rootLogger.level = WARN
rootLogger.appenderRefs = out
rootLogger.appenderRef.out.ref = out
appender.out.type = Console
appender.out.name = out
appender.out.target = SYSTEM_ERR
appender.out.layout.type = PatternLayout
appender.out.layout.pattern = %d %p %m (%c)%n
TEXT
}

variables() { echo "export KAFKA_BOOTSTRAP=127.0.0.1:$(port_of "$1")"; }

settings() { # settings DIR PORT
    cat <<TEXT
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://127.0.0.1:$2,CONTROLLER://127.0.0.1:$(($2 + 1))
advertised.listeners=PLAINTEXT://127.0.0.1:$2
controller.listener.names=CONTROLLER
controller.quorum.bootstrap.servers=127.0.0.1:$(($2 + 1))
log.dirs=$1/data
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
offsets.topic.num.partitions=8
transaction.state.log.num.partitions=8
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
transaction.abort.timed.out.transaction.cleanup.interval.ms=500
TEXT
    printf '%s\n' "${KAFKA_SETTINGS:-}"
}

# A listening socket comes before the broker is of use; the tool that makes sure takes a second to start.
answers() {
    ! port_is_free "$1" &&
        (java_of 128 org.apache.kafka.tools.TopicCommand --bootstrap-server "127.0.0.1:$1" --list >/dev/null)
}

serve() {
    local dir=$1 port
    command -v java >/dev/null || die "Java is not installed" 3
    log_to_stderr
    # Whoever comes back is found where it was.
    if [ ! -e "$dir/$name.port" ]; then free_ports "$dir" 2 >/dev/null; fi
    port=$(port_of "$dir")
    settings "$dir" "$port" >"$dir/server.properties"
    if [ ! -e "$dir/data/meta.properties" ]; then
        (java_of 128 kafka.tools.StorageTool format --standalone -c "$dir/server.properties" \
            -t "$(head -c 16 /dev/urandom | base64 | tr '+/' '-_' | tr -d '=')") >"$dir/format.log" 2>&1 ||
            die "it could not format its folder: $(tail -n 3 "$dir/format.log")"
    fi
    launch "$dir" "${BASH:-bash}" -c 'exec java -Xmx512m -cp "$1/*" -Dlog4j2.configurationFile="$2" kafka.Kafka "$3"' \
        kafka "$libs" "$cache/log4j2.properties" "$dir/server.properties"
    wait_until "$dir" answers "$port"
    say "Kafka $version serves at 127.0.0.1:$port, data and log in $dir"
}

kill_hard() {
    local pid
    pid=$(pid_of "$1") || die "no server of $1 runs"
    kill -9 "$pid"
    while pid_of "$1" >/dev/null; do sleep 0.05; done
}

tool() {
    local class
    case $1 in
    topics) class=org.apache.kafka.tools.TopicCommand ;;
    groups) class=org.apache.kafka.tools.consumer.group.ConsumerGroupCommand ;;
    transactions) class=org.apache.kafka.tools.TransactionsCommand ;;
    produce) class=org.apache.kafka.tools.ConsoleProducer ;;
    consume) class=org.apache.kafka.tools.consumer.ConsoleConsumer ;;
    *) die "no tool $1" 2 ;;
    esac
    shift
    install
    log_to_stderr
    java_of 256 "$class" "$@"
}

case ${1:-} in
kill) [ $# -eq 2 ] || usage; kill_hard "$2" ;;
tool) [ $# -ge 2 ] || usage; shift; tool "$@" ;;
*) main "$@" ;;
esac
