# What the scripts of test servers share; sourced, never run. A script sets `name` (as in messages) and `process` (the
# command's name as the system shows it), and defines `start DIR`, which prints export lines.

say() { echo "$name.sh: $*" >&2; }
die() { say "$1"; exit "${2:-1}"; }

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_ports N: the first of N free ports in a row.
free_ports() {
    local first port free
    for _ in $(seq 200); do
        first=$((20000 + RANDOM % 12000))
        free=1
        for port in $(seq "$first" $((first + $1 - 1))); do
            port_is_free "$port" || { free=0; break; }
        done
        [ "$free" = 1 ] && { echo "$first"; return; }
    done
    die "no $1 free ports in a row found"
}

pid_of() {
    local pid
    pid=$(cat "$1/$name.pid" 2>/dev/null) || return 1
    # The number may belong to another process by now.
    [ -n "$pid" ] && [ "$(cat "/proc/$pid/comm" 2>/dev/null || ps -o comm= -p "$pid" 2>/dev/null)" = "$process" ] && echo "$pid"
}

# launch DIR COMMAND...: in a session of its own, so that Ctrl-C at the caller does not reach it before the caller has
# finished. Its id and its log are kept in DIR.
launch() {
    local dir=$1
    shift
    "$(command -v setsid || command -v nohup)" "$@" </dev/null >"$dir/$name.log" 2>&1 9>&- &
    echo $! >"$dir/$name.pid"
}

# wait_until DIR COMMAND...: until COMMAND succeeds, at most 60 s, as long as the server of DIR runs.
wait_until() {
    local dir=$1
    shift
    for _ in $(seq 600); do
        if "$@" 2>/dev/null; then return; fi
        kill -0 "$(cat "$dir/$name.pid")" 2>/dev/null || die "it ended at once: $(tail -n 5 "$dir/$name.log")"
        sleep 0.1
    done
    stop "$dir"
    die "it did not answer within 60 s: $(tail -n 5 "$dir/$name.log")"
}

stop() {
    local pid
    pid=$(pid_of "$1") || { say "no server of $1 runs"; return; }
    kill "$pid"
    for _ in $(seq 100); do
        pid_of "$1" >/dev/null || break
        sleep 0.1
    done
    if pid_of "$1" >/dev/null; then kill -9 "$pid"; fi
    rm -f "$1/$name.pid"
}

run() {
    local place exports
    place=$(mktemp -d "${TMPDIR:-/tmp}/millstream-$name.XXXXXX")
    # shellcheck disable=SC2064 # the folder of now is meant
    trap "stop '$place'; rm -rf '$place'" EXIT
    trap 'exit 130' INT
    trap 'exit 143' TERM
    exports=$(start "$place")
    eval "$exports"
    "$@"
}

# once COMMAND...: runs COMMAND, which installs into $cache, while no other script does. Two at once: the second waits.
once() {
    mkdir -p "$cache"
    if command -v flock >/dev/null; then
        (flock 9; "$@") 9>"$cache/lock"
    else
        "$@"
    fi
}

main() {
    [ $# -ge 1 ] || usage
    local command=$1
    shift
    case $command in
    install) [ $# -eq 0 ] || usage; install ;;
    start) [ $# -eq 1 ] || usage; start "$@" ;;
    stop) [ $# -eq 1 ] || usage; stop "$1" ;;
    run) [ $# -ge 1 ] || usage; run "$@" ;;
    *) usage ;;
    esac
}
