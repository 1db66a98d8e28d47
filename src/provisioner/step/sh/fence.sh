# Begins every script that changes something, after the prelude. Raises the fence to $1, or ends
# with 77 where a newer run has raised it higher. The lock stays held on descriptor 9 until the
# script ends, so that nobody raises the fence in the middle; what must not hold it closes 9.
fence=$1
shift
(umask 022 && mkdir -p "$base") || exit 70
exec 9>>"$base/fence.lock" || exit 70
flock -w 20 9
case $? in
0) ;;
1) exit 75 ;;
*) exit 70 ;;
esac
seen=0
if [ -e "$base/fence" ]; then
    seen=$(cat "$base/fence") || exit 70
fi
case $seen in
'' | *[!0-9]*) exit 76 ;;
esac
if [ "$seen" -gt "$fence" ]; then
    echo "$seen"
    exit 77
fi
if [ "$seen" -lt "$fence" ]; then
    replace "$fence" "$base/fence" "$base" || exit 70
fi
