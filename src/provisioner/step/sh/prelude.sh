# Begins every script that the provisioner runs on a spare; POSIX sh. Values come as arguments.
# Whatever the login shell's start-up files printed ends here.
echo @understudy
umask 077
base=$1
shift
path=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin

# The beginning and the end of a file.
show() {
    size=$(wc -c <"$1")
    if [ "$size" -le 32768 ]; then
        cat "$1"
    else
        head -c 16384 "$1"
        printf '\n[... %s bytes left out ...]\n' $((size - 32768))
        tail -c 16384 "$1"
    fi
}

# A new content for a file, at once and on the disk: content, file, folder.
replace() {
    printf '%s\n' "$1" >"$2.new" && sync "$2.new" && mv -fT "$2.new" "$2" && sync "$3" && return
    room "$3"
    return 1
}

# Says so where the disk of a folder is full: what failed rarely does.
room() {
    set -- "$1" $(df -P "$1" | tail -n 1)
    [ "$5" != 0 ] || echo "the disk with $1 is full" >&2
}
