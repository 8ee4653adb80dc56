#!/usr/bin/env bash
# Runs all tests: units, models, 50 simulation seeds, the binary as a black box, and tests on real servers: MinIO (S3),
# SeaweedFS (S3 and WebDAV), Azurite (Azure), Apache Kafka and Apicurio Registry; at last a minute of a job with more state
# than memory on MinIO, a few kills of one from Kafka to Kafka, and a few tests on Apache Kafka 2.8. The servers are built or
# fetched once into ~/.cache/millstream and run for the time of the tests; they start while the tests are built. A server that is
# not to be had here (no Go, Python, Node.js, Java with Maven) leaves its tests out, and the last lines say so; with
# MILLSTREAM_REQUIRE_S3=1 that is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
work=$(mktemp -d)
servers=(minio seaweedfs azurite kafka schema-registry)
feature() { # feature SERVER: what builds its tests
    case $1 in
    minio) echo millstream-tests/s3 ;;
    kafka) echo millstream-kafka/broker,nexmark-kafka/broker ;;
    schema-registry) echo millstream-kafka/registry ;;
    *) echo "millstream-objects/$1" ;;
    esac
}
needs() {
    case $1 in
    minio) echo "Go" ;;
    seaweedfs) echo "Python with pip" ;;
    azurite) echo "Node.js with npm" ;;
    kafka) echo "Java 17 with Maven, openssl" ;;
    schema-registry) echo "Java 17 with Maven" ;;
    esac
}
cleanup() {
    local server
    wait
    for server in "${servers[@]}"; do
        "./scripts/$server.sh" stop "$work/$server" >/dev/null 2>&1 || true
    done
    rm -rf "$work" "$log"
}
trap cleanup EXIT

# A server is there when its script can install it; it then starts while the tests are built.
wanted=()
left_out=()
for server in "${servers[@]}"; do
    if "./scripts/$server.sh" install >/dev/null; then
        wanted+=("$(feature "$server")")
        ("./scripts/$server.sh" start "$work/$server" >"$work/$server.env" 2>"$work/$server.err" || echo failed >"$work/$server.failed") &
    elif [ "${MILLSTREAM_REQUIRE_S3:-0}" = 1 ]; then
        echo "no $server is to be had here, and its tests were asked for" >&2
        exit 1
    else
        left_out+=("the tests on $server (--features $(feature "$server")): install $(needs "$server")")
    fi
done
flags=()
[ ${#wanted[@]} -eq 0 ] || flags=(--features "$(IFS=,; echo "${wanted[*]}")")

cargo test --workspace --locked ${flags[@]+"${flags[@]}"} --no-run --quiet

wait
for server in "${servers[@]}"; do
    if [ -e "$work/$server.failed" ]; then
        cat "$work/$server.err" >&2
        exit 1
    fi
done
set -a
# MinIO last: the AWS_* variables that everything else reads are its, when it is there.
for server in azurite seaweedfs kafka schema-registry minio; do
    if [ -e "$work/$server.env" ]; then eval "$(cat "$work/$server.env")"; fi
done
set +a

status=0
cargo test --workspace --no-fail-fast --locked ${flags[@]+"${flags[@]}"} -- --quiet 2>&1 | tee "$log" || status=$?

# A short form of the long run (docs/benches.md): more state than memory, on a real server; bounds and fsck, not speed.
case " ${wanted[*]-} " in
*" millstream-tests/s3 "*)
    cargo build --locked --quiet -p millstream-server -p millstream-benches --bin millstream --bin bench
    target=${CARGO_TARGET_DIR:-target}/debug
    "$target/bench" soak --bin "$target/millstream" --gigabytes 0.3 --memory-limit 200MiB --minutes 6 --minute 10 \
        --warm-up 2 --rate 2000 --any-speed || status=$?
    ;;
esac

# A few kills of a job from Kafka to Kafka (docs/benches.md): each row once.
case " ${wanted[*]-} " in
*" millstream-kafka/broker,"*)
    cargo build --locked --quiet -p nexmark-kafka -p millstream-benches --bin nexmark-kafka --bin bench
    target=${CARGO_TARGET_DIR:-target}/debug
    "$target/bench" kafka-kills --bin "$target/nexmark-kafka" --kills 8 --rate 300 --pause-ms 2500 || status=$?
    ;;
esac

# An older broker, in a short form (docs/kafka.md): it neither describes transactions nor lists them.
case " ${wanted[*]-} " in
*" millstream-kafka/broker,"*)
    old=2.8.2
    if KAFKA_VERSION=$old ./scripts/kafka.sh install; then
        KAFKA_VERSION=$old ./scripts/kafka.sh run cargo test --workspace --locked ${flags[@]+"${flags[@]}"} --test it -- --quiet \
            transactions:: sink::slots_go_round sink::a_transaction_that_timed_out sink::who_begins source::committed_records 2>&1 |
            tee -a "$log" || status=$?
    elif [ "${MILLSTREAM_REQUIRE_S3:-0}" = 1 ]; then
        echo "no Apache Kafka $old is to be had here, and its tests were asked for" >&2
        status=1
    else
        left_out+=("the tests on Apache Kafka $old: it could not be fetched")
    fi
    ;;
esac

# One line for all test binaries.
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "\n%d passed, %d failed, %d skipped\n", passed, failed, ignored; exit passed == 0 }' "$log" || {
    echo "no test was run" >&2
    exit 1
}
for line in ${left_out[@]+"${left_out[@]}"}; do echo "left out: $line"; done
exit "$status"
