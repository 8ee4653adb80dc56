#!/usr/bin/env bash
# Plants one bug after the other (docs/simulation.md: most of them somebody shipped), and shows how many seeds the
# simulation takes to find it, and that the seeds up to there pass without it.
#
#   scripts/planted-bugs.sh [MAX_SEEDS] [BUG...]
#
# The simulation is built in the usual place for builds, one bug after the other; its copies lie in planted/ there.
set -euo pipefail
cd "$(dirname "$0")/.."

max="${1:-1000}"
shift || true
bugs=("$@")
if [ ${#bugs[@]} -eq 0 ]; then
    bugs=(1 2 3 4 5 8 9 10 11 12 16 20 21 24 25 26 27 28 31 32)
fi
target=${CARGO_TARGET_DIR:-target}
out=$target/planted
mkdir -p "$out/bin"

build() { # build BUG: the simulation with that bug, or without any ("")
    MILLSTREAM_PLANTED_BUG="$1" cargo build --quiet -p millstream-tests --bin sim
    cp "$target/debug/sim" "$out/bin/sim-${1:-none}"
}

what() {
    case "$1" in
        1) echo "take-over records are collected like others" ;;
        2) echo "a take-over starts from an older record than the one before it" ;;
        3) echo "who opens a job does not look at the boundary behind its take-over" ;;
        4) echo "what no version refers to is deleted, whoever may still report it" ;;
        5) echo "a pin is believed although its version is below the boundary" ;;
        8) echo "a late release of a pin hits a later pin" ;;
        9) echo "a deposed leader goes on to collect" ;;
        21) echo "records are deleted before the objects that only they tell of" ;;
        28) echo "pins are listed before the boundary is drawn" ;;
        10) echo "watermarks pass unmerged at a rescale" ;;
        11) echo "the watermark is not restored" ;;
        12) echo "timers are recorded under a wrong key group" ;;
        16) echo "a commit whose acknowledgement was lost is repeated as a new epoch" ;;
        20) echo "subtasks survive recovery" ;;
        24) echo "a commit that was not found is taken for never written" ;;
        25) echo "the epoch of a rescale is declined and taken along later" ;;
        26) echo "survivors keep their state while sources are rewound" ;;
        27) echo "old connections feed the new deployment" ;;
        31) echo "a worker without subtasks is let go although it owes commits" ;;
        32) echo "who takes over starts from a version before the barrier" ;;
        *) echo "?" ;;
    esac
}

build ""
missed=0
rows=()
for bug in "${bugs[@]}"; do
    build "$bug"
    log="$out/planted-$bug.log"
    found="" seeds="not within $max" clean="-"
    if ! timeout 3600 "$out/bin/sim-$bug" --seeds "1..$max" --stop-at-first >"$log" 2>&1; then
        found=$(sed -n 's/^seed \([0-9]*\): FAILED.*/\1/p' "$log" | head -1)
        # A panic or a hang ends the run without a verdict: the seed after the last one that passed.
        found="${found:-$(($(grep -c '^seed [0-9]*: ok' "$log") + 1))}"
        seeds="$found"
        if "$out/bin/sim-none" --seeds "1..$found" >"$out/clean-$bug.log" 2>&1; then
            clean="pass"
        else
            clean="FAIL" missed=1
        fi
    else
        missed=1
    fi
    why=$(sed -n 's/^seed [0-9]*: FAILED.* -- //p' "$log" | head -1 | cut -c1-70)
    rows+=("| $bug | $(what "$bug") | $seeds | $clean | ${why//|/ } |")
    echo "${rows[-1]}"
done
echo
echo "| bug | what is planted | seeds to find it | the same seeds without it | seen as |"
echo "|---|---|---|---|---|"
printf '%s\n' "${rows[@]}"
exit "$missed"
