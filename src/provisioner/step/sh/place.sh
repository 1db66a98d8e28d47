# Puts uploads in their places: a marker to leave or nothing, then for each upload, file, owner,
# group, mode. Everything that can fail by its values comes before the first rename, so that all
# files are placed or none. The mode comes after the owner: chown takes setuid bits away.
marker=$1
shift
if [ -n "$marker" ]; then
    mkdir -p "${marker%/*}" && : >"$marker" && sync "$marker" "${marker%/*}" || exit 70
fi
all() {
    while [ $# -ge 5 ]; do
        [ ! -d "$2" ] || [ -L "$2" ] || { echo "$2 is a directory"; return 1; }
        chown "$3:$4" "$1" && chmod "$5" "$1" || { echo "$2"; return 1; }
        shift 5
    done
}
discard() {
    while [ $# -ge 5 ]; do
        rm -f "$1"
        shift 5
    done
}
if ! all "$@" 2>&1; then
    discard "$@"
    exit 72
fi
while [ $# -ge 5 ]; do
    if ! mv -fT "$1" "$2" 2>&1; then
        discard "$@"
        exit 72
    fi
    sync "${2%/*}/"
    # What provisioners left that died while they uploaded.
    rm -f "${2%/*}/.${2##*/}.understudy."*
    shift 5
done
