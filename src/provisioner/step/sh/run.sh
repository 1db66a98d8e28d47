# The wrapper of a job, a session of its own: the job's folder, the time limit in seconds. Holds the
# job's lock on descriptor 8, which the script and the daemons that it starts do not get.
cd / || exit 70
seconds() {
    up=0
    read -r up rest </proc/uptime
    now=${up%%.*}
}
seconds
began=$now
(
    umask 022
    set -a
    . "$1/env"
    UNDERSTUDY_JOB=$1
    exec timeout -k 5 "$2" sh "$1/script"
) </dev/null >"$1/out" 2>"$1/err" 8>&-
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

printf '%s %s %s\n' "$how" "$status" "$took" >"$1/rc.new"
sync "$1/out" "$1/err" "$1/rc.new"
mv -fT "$1/rc.new" "$1/rc"
sync "$1"
