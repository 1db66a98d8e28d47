# The wrapper of a job, a session of its own: the job's folder, the time limit in seconds. Holds the
# job's lock on descriptor 8, which the script and the daemons that it starts do not get.
# It may hold secrets, whatever happens.
trap 'rm -f "$1/env"' EXIT
cd / || exit 70
seconds() {
    up=0
    read -r up rest </proc/uptime
    now=${up%%.*}
}
seconds
began=$now

# What the script prints goes through a pipe to a process that keeps a bounded part of it. That one
# is outside the script's session, holds `kept.lock` until it has read the last byte, and lives as
# long as a daemon that holds the pipe: to take it away would end the daemon by SIGPIPE.
exec 7>>"$1/kept.lock" || exit 70
flock -n 7 || exit 70
setsid sh "$1/keep" "$1/out" <"$1/pipe" >/dev/null 2>&1 8>&- &
exec 7>&-
(
    umask 022
    set -a
    . "$1/env"
    # It may hold secrets; nobody needs it any more.
    rm -f "$1/env"
    UNDERSTUDY_JOB=$1
    exec timeout -k 5 "$2" sh "$1/script"
) </dev/null >"$1/pipe" 2>&1 8>&-
status=$?
seconds
took=$((now - began))
how=exited
case $status in
124 | 137) [ "$took" -lt "$2" ] || how=timed_out ;;
esac

# Kills what is left of the script: its session, and what left the session but not the environment.
# The wrapper's own environment has no mark, so its helpers are not found; zombies do not count.
kill_rest() {
    dir=$1
    rounds=0
    while [ "$rounds" -lt 50 ]; do
        rest=
        for marked in $(grep -lzsFx "UNDERSTUDY_JOB=$dir" /proc/[0-9]*/environ); do
            marked=${marked#/proc/}
            rest="$rest ${marked%/environ}"
        done
        for p in /proc/[0-9]*; do
            { read -r stat <"$p/stat"; } 2>/dev/null || continue
            set -- ${stat##*) }
            case ${p#/proc/}-$1 in
            $$-* | *-Z | *-X) ;;
            *) [ "$4" != $$ ] || rest="$rest ${p#/proc/}" ;;
            esac
        done
        [ -n "$rest" ] || return
        kill -KILL $rest 2>/dev/null
        rounds=$((rounds + 1))
        sleep 0.1
    done
}
[ "$how" = exited ] || kill_rest "$1"

# The last words are read within a moment, unless a daemon holds the pipe.
flock -s -w 1 "$1/kept.lock" true
rm -f "$1/pipe"
# Over the room that was kept, without giving it back.
printf '%s %s %s\n' "$how" "$status" "$took" 1<>"$1/rc.new"
sync "$1/out" "$1/rc.new"
mv -fT "$1/rc.new" "$1/rc"
sync "$1"
