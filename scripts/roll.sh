#!/usr/bin/env bash
# Replaces all workers of a cluster under load, twice: two workers run a job; a new one comes, an old one gets SIGTERM, and
# so on. Prints how each worker ended and what the job says of it; fails when one did not end with 0, the job restarted,
# or the output is not exact.
#
#   scripts/roll.sh [EVENTS [RATE]]        default: 1,200,000 events at 20,000 a second, state in a folder
#
# Needs the release binary (cargo build --release --bin millstream), or MILLSTREAM_BIN.
set -euo pipefail
cd "$(dirname "$0")/.."

events="${1:-1200000}"
rate="${2:-20000}"
keys=20000
bin=${MILLSTREAM_BIN:-${CARGO_TARGET_DIR:-target}/release/millstream}
[ -x "$bin" ] || { echo "no binary at $bin: cargo build --release --bin millstream" >&2; exit 1; }
dir=$(mktemp -d)
pids=()
cleanup() {
    { kill -9 "${pids[@]}" && wait; } 2>/dev/null || true
    rm -rf "$dir"
}
trap cleanup EXIT

port=$((20000 + RANDOM % 10000))
export MILLSTREAM_COORDINATOR=127.0.0.1:$port
"$bin" coordinator --state "file://$dir/state" --listen "127.0.0.1:$port" >/dev/null 2>"$dir/coordinator.log" &
pids+=($!)
# until CONDITION: as long as the cluster's processes live.
wait_for() {
    until "$@"; do
        kill -0 "${pids[@]}" 2>/dev/null || { echo "a process has ended before it was to; see $dir" >&2; exit 1; }
        sleep 0.1
    done
}
serves() { "$bin" list >/dev/null 2>&1; }
registered() { "$bin" workers --json | grep -q "\"pid\":$1,"; }
wait_for serves

number=0
workers=()
start_worker() {
    number=$((number + 1))
    "$bin" worker --slots 2 --cache-dir "$dir/w$number" >/dev/null 2>"$dir/worker$number.log" &
    workers+=("$!:$number")
    pids+=($!)
    wait_for registered $!
}
field() { "$bin" status "$id" --json | grep -o "\"$1\":[^,}]*" | head -1 | cut -d: -f2; }

start_worker
start_worker
id=$("$bin" submit keyed-count -p 4 -- --keys $keys --value-bytes 100 --events "$events" --rate "$rate" --output "files:$dir/out")
has_versions() { [ "$(field version)" -gt 3 ]; }
wait_for has_versions
echo "job $id: keyed-count, 4 subtasks on 2 workers, $rate events a second"

for round in 1 2; do
    for _ in 1 2; do
        start_worker
        old=${workers[0]}
        workers=("${workers[@]:1}")
        began=$(date +%s%N)
        kill -TERM "${old%%:*}"
        code=0
        wait "${old%%:*}" || code=$?
        living=()
        for pid in "${pids[@]}"; do [ "$pid" = "${old%%:*}" ] || living+=("$pid"); done
        pids=("${living[@]}")
        took=$((($(date +%s%N) - began) / 1000000))
        said=$(tail -1 "$dir/worker${old##*:}.log")
        echo "round $round: worker ${old##*:} ended with $code after $took ms ($said); restarts $(field restarts)"
        [ "$code" = 0 ] || exit 1
        sleep 2
    done
done

has_ended() { "$bin" status "$id" --json | grep -q '"state":"\(finished\|failed\|canceled\)"'; }
wait_for has_ended
status=$("$bin" status "$id" --json)
echo "moves: $(echo "$status" | grep -o '"moved":\[[0-9,]*\]' | tr '\n' ' ')"
echo "pause_ms of each: $(echo "$status" | grep -o '"pause_ms":[0-9]*' | cut -d: -f2 | tr '\n' ' ')"
"$bin" versions "$id" --json | grep -o '"committed_ms":[0-9]*' | cut -d: -f2 | sort -n |
    awk 'NR > 1 { gap = $1 - last; if (gap > most) most = gap } { last = $1 } END { print "longest time between two versions: " most " ms" }'
total=$(cat "$dir"/out/part-* | grep -c "{\"key\":-1,\"count\":$events}") || true
rows=$(cat "$dir"/out/part-* | wc -l)
echo "restarts $(field restarts); output: $rows rows, total of $events found $total time(s)"
[ "$(field restarts)" = 0 ] && [ "$total" = 1 ] && [ "$rows" = $((keys / 1000 + 1)) ]
