# Runs a command of the catalogue: its time limit in seconds, the command, the file for its output
# or nothing, a file to remove when it succeeds or nothing. The output goes to a file, because a
# daemon that keeps it open would keep the SSH channel open.
out=$3
[ -n "$out" ] || out=$(mktemp) || exit 70
mkdir -p "${out%/*}" || exit 70
(
    umask 022
    cd / && exec timeout -k 5 "$1" env -i "PATH=$path" "HOME=${HOME:-/root}" LC_ALL=C.UTF-8 \
        sh -c "$2"
) </dev/null >"$out" 2>&1 9>&-
status=$?
if [ "$status" -eq 0 ] && [ -n "$4" ]; then
    rm -f "$4" || exit 70
fi
echo "$status"
show "$out"
[ -n "$3" ] || rm -f "$out"
