#!/usr/bin/env bash
# A tour of a cluster: MinIO, a coordinator, two workers, a job; kill -9 of a worker; a live rescale; the result.
# Needs the release binary (cargo build --release --bin millstream) and Go (for MinIO; built once).
set -euo pipefail
cd "$(dirname "$0")/.."

bin=${MILLSTREAM_BIN:-${CARGO_TARGET_DIR:-target}/release/millstream}
[ -x "$bin" ] || { echo "no binary at $bin: cargo build --release --bin millstream" >&2; exit 1; }
dir=$(mktemp -d)
pids=()
cleanup() {
    # A worker that is asked to end would look for somebody who takes over.
    kill -9 "${pids[@]}" 2>/dev/null || true
    ./scripts/minio.sh stop "$dir/minio" >/dev/null 2>&1 || true
}
trap cleanup EXIT
say() { printf '\n\033[1m%s\033[0m\n' "$*"; }

say "1. MinIO in $dir/minio"
eval "$(./scripts/minio.sh start "$dir/minio")"

say "2. a coordinator, and two workers with two slots each"
port=$((20000 + RANDOM % 10000))
export MILLSTREAM_COORDINATOR=127.0.0.1:$port
"$bin" coordinator --state s3://millstream/tour --listen "127.0.0.1:$port" 2>"$dir/coordinator.log" &
pids+=($!)
"$bin" worker --coordinator "127.0.0.1:$port" --slots 2 --cache-dir "$dir/w1" 2>"$dir/worker1.log" &
worker1=$!
pids+=("$worker1")
"$bin" worker --coordinator "127.0.0.1:$port" --slots 2 --cache-dir "$dir/w2" 2>"$dir/worker2.log" &
pids+=($!)
until "$bin" list >/dev/null 2>&1; do sleep 0.2; done

say "3. a job: 400,000 events at 20,000 a second, counted per auction in sliding windows, into files"
id=$("$bin" submit nexmark-q5 -p 2 -- --events 400000 --rate 20000 --output "files:$dir/out")
echo "job $id"
sleep 4
"$bin" status "$id"

say "4. kill -9 of worker 1, and another one in its place"
kill -9 "$worker1"
"$bin" worker --coordinator "127.0.0.1:$port" --slots 2 --cache-dir "$dir/w3" 2>"$dir/worker3.log" &
pids+=($!)
sleep 4

say "5. from 2 to 4 subtasks while it runs"
until "$bin" rescale "$id" -p 4; do sleep 1; done

say "6. until the input ends"
until "$bin" status "$id" --json | grep -q '"state":"finished"'; do sleep 1; done
"$bin" status "$id"

say "7. the same without failures, in one process: the same rows"
"$bin" run nexmark-q5 -p 2 -- --events 400000 --output "files:$dir/alone"
cat "$dir"/out/part-* | sort >"$dir/out.sorted"
cat "$dir"/alone/part-* | sort >"$dir/alone.sorted"
wc -l "$dir/out.sorted" "$dir/alone.sorted"
cmp "$dir/out.sorted" "$dir/alone.sorted" && echo "identical"
