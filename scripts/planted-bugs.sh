#!/usr/bin/env bash
# Plants one bug after the other (docs/simulation.md: most of them somebody shipped), and shows how many seeds the
# simulation takes to find it, and that the seeds up to there pass without it.
#
#   scripts/planted-bugs.sh [MAX_SEEDS] [BUG...]
#
# All bugs are in one build, and one at a time is switched on. The control runs in a build that has none of them.
set -euo pipefail
cd "$(dirname "$0")/.."

max="${1:-1000}"
shift || true
bugs=("$@")
if [ ${#bugs[@]} -eq 0 ]; then
    bugs=(1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20 21 22 23 24 25 26 27 28 30 31 32 33 34 36 37)
fi
target=${CARGO_TARGET_DIR:-target}
out=$target/planted
mkdir -p "$out"

build() { # build YES_OR_NO NAME: the simulation with the bugs in it, or without
    MILLSTREAM_PLANTED_BUGS="$1" cargo build --quiet -p millstream-tests --bin sim
    cp "$target/debug/sim" "$out/$2"
}

what() {
    case "$1" in
        1) echo "take-over records are collected like others" ;;
        2) echo "a take-over starts from an older record than the one before it" ;;
        3) echo "who opens a job does not look at the boundary behind its take-over" ;;
        4) echo "what no version refers to is deleted, whoever may still report it" ;;
        5) echo "a pin is believed although its version is below the boundary" ;;
        6) echo "tombstones are dropped above the bottom" ;;
        7) echo "where an object lies depends on a setting" ;;
        8) echo "a late release of a pin hits a later pin" ;;
        9) echo "a deposed leader takes its versions along" ;;
        10) echo "watermarks pass unmerged at a rescale" ;;
        11) echo "the watermark is not restored" ;;
        12) echo "timers are recorded under a wrong key group" ;;
        13) echo "what failed checkpoints have left to commit is not taken along" ;;
        14) echo "a transaction that the broker gave up counts as committed" ;;
        15) echo "what sinks have left to commit keeps nothing alive" ;;
        16) echo "a commit whose acknowledgement was lost is repeated as a new epoch" ;;
        17) echo "whoever takes a split up reads its last row again" ;;
        18) echo "whoever finds its number taken by itself believes that it was fenced" ;;
        19) echo "a sink says nothing of what it wrote" ;;
        20) echo "subtasks survive recovery" ;;
        21) echo "records are deleted before the objects that only they tell of" ;;
        22) echo "state is read whatever hash it was written with" ;;
        23) echo "a replica without faults answers reads of the simulation" ;;
        24) echo "a commit that was not found is taken for never written" ;;
        25) echo "the epoch of a rescale is declined and taken along later" ;;
        26) echo "survivors keep their state while sources are rewound" ;;
        27) echo "old connections feed the new deployment" ;;
        28) echo "pins are listed before the boundary is drawn" ;;
        30) echo "a scale-in takes along what its subtasks have left to commit" ;;
        31) echo "a worker without subtasks is let go although it owes commits" ;;
        32) echo "who takes over starts from a version before the barrier" ;;
        33) echo "a leader that was deposed while it opened a job goes on with it" ;;
        34) echo "what is read back from the store never expires" ;;
        36) echo "a transactional id is used again as soon as a version lists its transaction" ;;
        37) echo "a transactional id is used although a second request to make its producer may be on its way" ;;
        *) echo "?" ;;
    esac
}

build 1 sim-with
build 0 sim-without
missed=0 most=0
rows=()
for bug in "${bugs[@]}"; do
    log="$out/planted-$bug.log"
    found="" seeds="not within $max"
    if ! timeout 3600 "$out/sim-with" --bug "$bug" --seeds "1..$max" --stop-at-first >"$log" 2>&1; then
        found=$(sed -n 's/^seed \([0-9]*\): FAILED.*/\1/p' "$log" | head -1)
        # A panic or a hang ends the run without a verdict: the seed after the last one that passed.
        seeds="${found:-$(($(grep -c '^seed [0-9]*: ok' "$log") + 1))}"
        most=$((seeds > most ? seeds : most))
    else
        missed=1
    fi
    why=$(sed -n 's/^seed [0-9]*: FAILED.* -- //p' "$log" | head -1 | cut -c1-80)
    rows+=("| $bug | $(what "$bug") | $seeds | ${why//|/ } |")
    echo "${rows[-1]}"
done
echo
echo "| bug | what is planted | seeds to find it | seen as |"
echo "|---|---|---|---|"
printf '%s\n' "${rows[@]}"
if [ "$most" -gt 0 ]; then
    printf '\nthe same seeds without a bug, 1 to %s: ' "$most"
    "$out/sim-without" --seeds "1..$most" >"$out/control.log" 2>&1 || missed=1
    tail -1 "$out/control.log"
fi
exit "$missed"
