#!/usr/bin/env bash
# Runs all tests: units, models, 50 simulation seeds, the binary as a black box, and, on a real MinIO, the S3 tests.
# MinIO is built once with Go into ~/.cache/millstream and runs for the time of the tests. Without Go the S3 tests are
# left out, and the last lines say so; with MILLSTREAM_REQUIRE_S3=1 that is a failure.
set -euo pipefail
cd "$(dirname "$0")/.."

log=$(mktemp)
work=$(mktemp -d)
cleanup() { ./scripts/minio.sh stop "$work/minio" >/dev/null 2>&1 || true; rm -rf "$work" "$log"; }
trap cleanup EXIT

features=()
left_out=""
if env_lines=$(./scripts/minio.sh start "$work/minio"); then
    set -a
    eval "$env_lines"
    set +a
    export MILLSTREAM_TEST_S3="$AWS_ENDPOINT_URL"
    features=(--features millstream-tests/s3)
elif [ "${MILLSTREAM_REQUIRE_S3:-0}" = 1 ]; then
    echo "no MinIO could be started, and the S3 tests were asked for" >&2
    exit 1
else
    left_out="the S3 tests (millstream-tests with --features s3): no MinIO could be started; install Go or Docker"
fi

status=0
cargo test --workspace --locked "${features[@]}" -- --quiet 2>&1 | tee "$log" || status=$?

# One line for all test binaries.
awk '/^test result:/ { passed += $4; failed += $6; ignored += $8 }
     END { printf "\n%d passed, %d failed, %d skipped\n", passed, failed, ignored; exit passed == 0 }' "$log" || {
    echo "no test was run" >&2
    exit 1
}
[ -z "$left_out" ] || echo "left out: $left_out"
exit "$status"
