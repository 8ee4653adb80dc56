# What the scripts of test servers share; sourced, never run. A script sets `name` (as in messages), `process` (the
# command's name as the system shows it) and `cache`, and defines
#   installed       whether the server is there
#   fetch           brings it into $cache
#   serve DIR       starts it with its data in DIR/data
#   variables DIR   prints export lines for the server of DIR

# `start` runs in $(...) below: what fails there must end it (bash 4.4).
shopt -s inherit_errexit 2>/dev/null || true

say() { echo "$name.sh: $*" >&2; }
die() { say "$1"; exit "${2:-1}"; }

port_is_free() { ! (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

# free_ports DIR N: the first of N free ports in a row, kept in DIR.
free_ports() {
    local first port free
    for _ in $(seq 200); do
        first=$((20000 + RANDOM % 12000))
        free=1
        for port in $(seq "$first" $((first + $2 - 1))); do
            port_is_free "$port" || { free=0; break; }
        done
        [ "$free" = 1 ] && { echo "$first" | tee "$1/$name.port"; return; }
    done
    die "no $2 free ports in a row found"
}

port_of() { cat "$1/$name.port"; }

# For the servers that speak S3, and whoever else has users.
user=millstream
password=millstream-secret
region=us-east-1

s3_variables() { # s3_variables PORT
    cat <<TEXT
export AWS_ENDPOINT_URL=http://127.0.0.1:$1
export AWS_ACCESS_KEY_ID=$user
export AWS_SECRET_ACCESS_KEY=$password
export AWS_REGION=$region
TEXT
}

s3_status() { # s3_status PORT PATH [CURL OPTION...]: the HTTP status that answers a signed request
    local url="http://127.0.0.1:$1/$2"
    shift 2
    curl -s -o /dev/null -w '%{http_code}' --aws-sigv4 "aws:amz:$region:s3" --user "$user:$password" "$@" "$url"
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

# A script with more than one process has a `stop` of its own.
stop() { stop_server "$1"; }

stop_server() {
    local pid
    pid=$(pid_of "$1") || { say "no server of $1 runs"; return 0; }
    kill "$pid"
    for _ in $(seq 100); do
        pid_of "$1" >/dev/null || break
        sleep 0.1
    done
    if pid_of "$1" >/dev/null; then kill -9 "$pid"; fi
    rm -f "$1/$name.pid"
}

start() {
    local dir=$1
    command -v curl >/dev/null || die "curl is not installed"
    install
    mkdir -p "$dir/data"
    dir=$(cd "$dir" && pwd)
    if pid_of "$dir" >/dev/null; then say "a server of $dir runs already"; else serve "$dir"; fi
    variables "$dir"
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

# Two at once: the second waits and finds what the first one brought.
install() {
    installed && return
    mkdir -p "$cache"
    if command -v flock >/dev/null; then exec 9>"$cache/lock"; flock 9; fi
    installed || fetch
    exec 9>&-
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
