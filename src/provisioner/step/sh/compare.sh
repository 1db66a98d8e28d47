# What stands now: first a marker, then files. One line each.
if [ -e "$1" ]; then echo pending; else echo settled; fi
shift
for file in "$@"; do
    if [ -f "$file" ] && [ ! -L "$file" ]; then
        digest=$(sha256sum <"$file") && stat=$(stat -c '%a %U %G %u %g' "$file") || exit 70
        echo "${digest%% *} $stat"
    elif [ -d "${file%/*}/" ]; then
        echo absent
    else
        echo homeless
    fi
done
