# How a job stands: its name, seconds to wait for its end. The lock is asked before the result is
# read: the wrapper writes the result while it holds the lock.
dir=$base/jobs/$1
if [ ! -d "$dir" ]; then
    echo absent
elif [ ! -e "$dir/lock" ]; then
    echo lost
else
    flock -s -w "$2" -E 9 "$dir/lock" true
    status=$?
    if [ "$status" -eq 9 ]; then
        # How much it has printed, as far as that tells whether to look.
        echo "running $(cat "$dir/out.parts" 2>/dev/null || echo 0)/$(cat "$dir/out" "$dir/out.end" 2>/dev/null | wc -c)"
    elif [ "$status" -ne 0 ]; then
        exit 70
    elif [ -s "$dir/rc" ]; then
        echo "ended $(cat "$dir/rc")"
    else
        echo lost
    fi
fi
