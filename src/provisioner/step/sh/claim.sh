# Makes an upload the job and starts it, or throws it away where the job is there already: the
# job's name, the upload, the script's digest, the time limit in seconds.
dir=$base/jobs/$1
stage=$2
# It may hold secrets: what does not become the job does not stay.
trap 'rm -rf "$stage"' EXIT
if [ -e "$dir" ]; then
    echo claimed
    exit 0
fi
[ "$(sha256sum <"$stage/script")" = "$3  -" ] || {
    echo "the upload is not what was sent" >&2
    exit 71
}
# Room for the result, while there is some: a script that fills the disk must not hide its own end. All that can fail
# for want of room comes before the job is there.
printf '%64s\n' '' >"$stage/rc.new" && mkfifo "$stage/pipe" && : >"$stage/kept.lock" || {
    room "$base"
    exit 70
}
# Locked before it can be found, and until the wrapper ends: found and not locked means that nothing
# runs. A folder with something in it is never replaced by a rename, so one claim wins.
exec 8>>"$stage/lock" || exit 70
flock -n 8 || exit 70
sync "$stage/script" "$stage/env" "$stage/run" "$stage/keep" "$stage/lock" "$stage"
mv -T "$stage" "$dir" || exit 70
trap - EXIT
sync "$base/jobs"
setsid env -i "PATH=$path" "HOME=${HOME:-/root}" LC_ALL=C.UTF-8 \
    sh "$dir/run" "$dir" "$4" </dev/null >/dev/null 2>&1 9>&- &
echo started
