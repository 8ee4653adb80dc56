#!/usr/bin/env bash
# Apache Kafka without Docker: one real broker (KRaft; before 3.5 with ZooKeeper), for tests and for trying things out.
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
The same broker is at KAFKA_BOOTSTRAP_TLS, at KAFKA_BOOTSTRAP_MTLS (wants a certificate of the client), at
KAFKA_BOOTSTRAP_SASL and KAFKA_BOOTSTRAP_SASL_TLS (PLAIN, SCRAM, OAUTHBEARER with unsigned tokens; KAFKA_USER,
KAFKA_PASSWORD). KAFKA_CA is its CA; beside that file are client.pem, client.key and client-encrypted.key (by
KAFKA_PASSWORD). Its certificate is for 127.0.0.1, not for localhost.
For tests that cut the network it listens at KAFKA_CUT_TARGET, too, and says there that it is at KAFKA_BOOTSTRAP_CUT: a free
port, for a proxy of the test.
Settings of the broker beyond those of this script: KAFKA_SETTINGS, one NAME=VALUE a line.
KAFKA_VERSION says which Kafka: 4.1.1 unless set; 2.8 and later. A DIR stays with its version.
The jars are kept in ${MILLSTREAM_CACHE:-$HOME/.cache/millstream}/kafka. Exit code 3: it cannot be installed here.
TEXT
    exit 2
}

name=kafka
version=${KAFKA_VERSION:-4.1.1}
process=java
cache=${MILLSTREAM_CACHE:-${HOME:?}/.cache/millstream}/kafka
libs=$cache/libs-$version
# shellcheck source=scripts/server-common.sh
. "$(dirname "$0")/server-common.sh"

installed() { [ -e "$libs/complete" ]; }

# since VERSION: whether the broker is of this version or a later one.
since() { [ "$(printf '%s\n' "$1" "$version" | sort -V | head -n 1)" = "$1" ]; }

# Before 3.5 a broker without ZooKeeper knows no users of SCRAM.
has_zookeeper() { ! since 3.5; }

dependency() { # dependency GROUP ARTIFACT VERSION
    echo "<dependency><groupId>$1</groupId><artifactId>$2</artifactId><version>$3</version></dependency>"
}

fetch() {
    command -v mvn >/dev/null || die "Maven is not installed, and Kafka comes as Maven artifacts" 3
    command -v openssl >/dev/null || die "openssl is not installed" 3
    say "fetching Kafka $version, once"
    local fresh
    fresh=$(mktemp -d "$cache/fetch.XXXXXX")
    cat >"$fresh/pom.xml" <<TEXT
<project xmlns="http://maven.apache.org/POM/4.0.0">
  <modelVersion>4.0.0</modelVersion>
  <groupId>millstream</groupId><artifactId>kafka</artifactId><version>1</version>
  <dependencies>
    $(dependency org.apache.kafka kafka_2.13 "$version")
    $(dependency org.apache.kafka kafka-tools "$version")
    $(if since 4.0; then
        dependency org.apache.logging.log4j log4j-slf4j-impl 2.25.2
    elif since 3.1; then
        dependency org.slf4j slf4j-reload4j 1.7.36
    fi)
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
    exec java "-Xmx${megabytes}m" -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$libs/*" "${log[@]}" "$@"
}

log=("-Dlog4j2.configurationFile=$cache/log4j2.properties" "-Dlog4j.configuration=file:$cache/log4j.properties")

log_to_stderr() {
    cat >"$cache/log4j.properties" <<'TEXT'
log4j.rootLogger=WARN, out
log4j.appender.out=org.apache.log4j.ConsoleAppender
log4j.appender.out.target=System.err
log4j.appender.out.layout=org.apache.log4j.PatternLayout
log4j.appender.out.layout.ConversionPattern=%d %p %m (%c)%n
TEXT
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

variables() {
    local port
    port=$(port_of "$1")
    cat <<TEXT
export KAFKA_BOOTSTRAP=127.0.0.1:$port
export KAFKA_BOOTSTRAP_TLS=127.0.0.1:$((port + 2))
export KAFKA_BOOTSTRAP_MTLS=127.0.0.1:$((port + 3))
export KAFKA_BOOTSTRAP_SASL=127.0.0.1:$((port + 4))
export KAFKA_BOOTSTRAP_SASL_TLS=127.0.0.1:$((port + 5))
export KAFKA_CUT_TARGET=127.0.0.1:$((port + 6))
export KAFKA_BOOTSTRAP_CUT=127.0.0.1:$((port + 7))
export KAFKA_CA=$1/tls/ca.pem
export KAFKA_USER=$user
export KAFKA_PASSWORD=$password
TEXT
}

# certificates DIR: a CA, and what it has issued for the broker and for a client.
certificates() {
    local dir=$1/tls who
    [ ! -e "$dir/complete" ] || return 0
    mkdir -p "$dir"
    (
        cd "$dir"
        key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256 -out "$1.key"; }
        printf '%s\n' '[req]' 'distinguished_name=name' '[name]' '[ca]' 'basicConstraints=critical,CA:true' \
            '[broker]' 'subjectAltName=IP:127.0.0.1' '[client]' 'basicConstraints=CA:false' >openssl.cnf
        key ca
        openssl req -x509 -new -key ca.key -subj /CN=ca -days 3650 -config openssl.cnf -extensions ca -out ca.pem
        for who in broker client; do
            key "$who"
            openssl req -new -key "$who.key" -subj "/CN=$who" -config openssl.cnf -out "$who.csr"
            openssl x509 -req -in "$who.csr" -CA ca.pem -CAkey ca.key -CAcreateserial -days 3650 \
                -extfile openssl.cnf -extensions "$who" -out "$who.pem"
        done
        openssl pkcs8 -topk8 -in client.key -passout "pass:$password" -out client-encrypted.key
        # Before 3.2 brokers take no other form.
        openssl pkcs8 -topk8 -v1 PBE-SHA1-3DES -in broker.key -passout "pass:$password" -out broker-encrypted.key
        cat broker-encrypted.key broker.pem >store.pem
        touch complete
    ) >"$1/tls.log" 2>&1 || die "no certificates could be made: $(tail -n 3 "$1/tls.log")"
}

security() { # security DIR: TLS and SASL of the listeners that have them
    local listener modules=org.apache.kafka.common.security
    cat <<TEXT
ssl.keystore.type=PEM
ssl.keystore.location=$1/tls/store.pem
ssl.key.password=$password
ssl.truststore.type=PEM
ssl.truststore.location=$1/tls/ca.pem
listener.name.mtls.ssl.client.auth=required
sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512,OAUTHBEARER
TEXT
    for listener in sasl_plaintext sasl_ssl; do
        cat <<TEXT
listener.name.$listener.plain.sasl.jaas.config=$modules.plain.PlainLoginModule required user_$user="$password";
listener.name.$listener.scram-sha-256.sasl.jaas.config=$modules.scram.ScramLoginModule required;
listener.name.$listener.scram-sha-512.sasl.jaas.config=$modules.scram.ScramLoginModule required;
listener.name.$listener.oauthbearer.sasl.jaas.config=$modules.oauthbearer.OAuthBearerLoginModule required;
TEXT
    done
    # So soon that a test can wait for it.
    echo listener.name.sasl_plaintext.scram-sha-512.connections.max.reauth.ms=3000
}

settings() { # settings DIR PORT
    local plain="PLAINTEXT://127.0.0.1:$2" secure="SSL://127.0.0.1:$(($2 + 2)),MTLS://127.0.0.1:$(($2 + 3))"
    local cut="CUT://127.0.0.1:$(($2 + 6))"
    local protocols=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,CUT:PLAINTEXT,SSL:SSL,MTLS:SSL,SASL_PLAINTEXT:SASL_PLAINTEXT,SASL_SSL:SASL_SSL
    secure+=",SASL_PLAINTEXT://127.0.0.1:$(($2 + 4)),SASL_SSL://127.0.0.1:$(($2 + 5))"
    security "$1"
    if has_zookeeper; then
        cat <<TEXT
broker.id=1
listeners=$plain,$secure,$cut
zookeeper.connect=127.0.0.1:$(($2 + 1))
zookeeper.session.timeout.ms=6000
authorizer.class.name=kafka.security.authorizer.AclAuthorizer
TEXT
    else
        cat <<TEXT
process.roles=broker,controller
node.id=1
listeners=$plain,CONTROLLER://127.0.0.1:$(($2 + 1)),$secure,$cut
controller.listener.names=CONTROLLER
authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer
TEXT
        if since 3.9; then
            echo "controller.quorum.bootstrap.servers=127.0.0.1:$(($2 + 1))"
        else
            echo "controller.quorum.voters=1@127.0.0.1:$(($2 + 1))"
        fi
    fi
    if since 4.0; then
        echo share.coordinator.state.topic.replication.factor=1
        echo share.coordinator.state.topic.min.isr=1
    fi
    cat <<TEXT
advertised.listeners=$plain,$secure,CUT://127.0.0.1:$(($2 + 7))
listener.security.protocol.map=$protocols
log.dirs=$1/data
offsets.topic.replication.factor=1
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
offsets.topic.num.partitions=8
transaction.state.log.num.partitions=8
group.initial.rebalance.delay.ms=0
auto.create.topics.enable=false
transaction.abort.timed.out.transaction.cleanup.interval.ms=500
super.users=User:ANONYMOUS
allow.everyone.if.no.acl.found=true
TEXT
    printf '%s\n' "${KAFKA_SETTINGS:-}"
}

# Users of SCRAM, as tools of Kafka's name them.
scram() { # scram MECHANISM [NAME]
    echo "$1=[${2:+name=$2,}password=$password]"
}

format() { # format DIR: what a broker keeps itself, before its first start
    local dir=$1 standalone=()
    if since 3.9; then standalone=(--standalone); fi
    # The id of the cluster must not begin like an option.
    (java_of 128 kafka.tools.StorageTool format ${standalone[@]+"${standalone[@]}"} -c "$dir/server.properties" \
        -t "$(head -c 16 /dev/urandom | base64 | tr '+/' 'ab' | tr -d '=')" \
        --add-scram "$(scram SCRAM-SHA-256 "$user")" --add-scram "$(scram SCRAM-SHA-512 "$user")") \
        >"$dir/format.log" 2>&1 || die "it could not format its folder: $(tail -n 3 "$dir/format.log")"
}

zookeeper() { # zookeeper DIR PORT: keeps what its broker does not, in a process of its own
    local dir=$1 port=$2 name=zookeeper
    if pid_of "$dir" >/dev/null; then return; fi
    mkdir -p "$dir/zookeeper"
    printf '%s\n' "dataDir=$dir/zookeeper" "clientPort=$port" clientPortAddress=127.0.0.1 admin.enableServer=false \
        >"$dir/zookeeper.properties"
    launch "$dir" java -Xmx128m -XX:+UseSerialGC -XX:TieredStopAtLevel=1 -cp "$libs/*" "${log[@]}" \
        org.apache.zookeeper.server.quorum.QuorumPeerMain "$dir/zookeeper.properties"
    wait_until "$dir" listens "$port"
    (java_of 128 kafka.admin.ConfigCommand --zookeeper "127.0.0.1:$port" --alter --entity-type users \
        --entity-name "$user" --add-config "$(scram SCRAM-SHA-256),$(scram SCRAM-SHA-512)") >"$dir/format.log" 2>&1 ||
        die "its users could not be made: $(tail -n 3 "$dir/format.log")"
}

# ZooKeeper takes a killed broker for a living one until its session ends, 6 s rounded up to its ticks of 3 s, and refuses
# another one until then.
let_go() { # let_go DIR
    local ago
    if [ ! -e "$1/killed" ]; then return; fi
    ago=$(($(date +%s) - $(stat -c %Y "$1/killed")))
    if [ "$ago" -lt 10 ]; then sleep $((10 - ago)); fi
    rm "$1/killed"
}

stop() {
    stop_server "$1"
    if [ -e "$1/zookeeper.pid" ]; then name=zookeeper stop_server "$1"; fi
}

listens() { ! port_is_free "$1"; }

# A listening socket comes before the broker is of use; the tool that makes sure takes a second to start.
answers() {
    listens "$1" &&
        (java_of 128 "$(class_of topics)" --bootstrap-server "127.0.0.1:$1" --list >/dev/null)
}

serve() {
    local dir=$1 port
    command -v java >/dev/null || die "Java is not installed" 3
    command -v openssl >/dev/null || die "openssl is not installed" 3
    log_to_stderr
    # Whoever comes back is found where it was.
    if [ ! -e "$dir/$name.port" ]; then free_ports "$dir" 8 >/dev/null; fi
    port=$(port_of "$dir")
    certificates "$dir"
    settings "$dir" "$port" >"$dir/server.properties"
    if has_zookeeper; then
        zookeeper "$dir" $((port + 1))
        let_go "$dir"
    elif [ ! -e "$dir/data/meta.properties" ]; then
        format "$dir"
    fi
    launch "$dir" java -Xmx512m -cp "$libs/*" "${log[@]}" kafka.Kafka "$dir/server.properties"
    wait_until "$dir" answers "$port"
    say "Kafka $version serves at 127.0.0.1:$port, data and log in $dir"
}

kill_hard() {
    local pid
    pid=$(pid_of "$1") || die "no server of $1 runs"
    kill -9 "$pid"
    while pid_of "$1" >/dev/null; do sleep 0.05; done
    touch "$1/killed"
}

# class_of TOOL: they moved, each in a version of its own.
class_of() {
    local of=kafka.admin
    case $1 in
    topics) if since 3.7; then of=org.apache.kafka.tools; fi; echo "$of.TopicCommand" ;;
    groups) if since 3.8; then of=org.apache.kafka.tools.consumer.group; fi; echo "$of.ConsumerGroupCommand" ;;
    transactions) echo org.apache.kafka.tools.TransactionsCommand ;;
    produce) of=kafka.tools; if since 4.0; then of=org.apache.kafka.tools; fi; echo "$of.ConsoleProducer" ;;
    consume) of=kafka.tools; if since 3.8; then of=org.apache.kafka.tools.consumer; fi; echo "$of.ConsoleConsumer" ;;
    *) die "no tool $1" 2 ;;
    esac
}

tool() {
    local class
    class=$(class_of "$1")
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
