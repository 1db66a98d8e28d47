# What a spare is before it is needed: its operating system, and the free KiB where its jobs will lie. One line each.
ID= VERSION_ID=
if [ -r /etc/os-release ]; then
    . /etc/os-release
elif [ -r /usr/lib/os-release ]; then
    . /usr/lib/os-release
fi
echo "${ID:-linux}${VERSION_ID:+-$VERSION_ID}"
place=$base
while [ ! -d "$place" ]; do
    place=${place%/*}
    [ -n "$place" ] || place=/
done
df -Pk "$place" | while read -r _ _ _ free _; do
    echo "$free"
done | tail -n 1
