# Keeps the beginning and the end of what comes on stdin, and takes all of it: a file. At most three
# parts of 128 KiB: the file itself, FILE.last (the newest whole part but one) and FILE.end (the
# newest part); FILE.parts counts the parts after the first. A disk that is full must not stop
# whoever writes: then the rest is read and forgotten.
keep() {
    part=131072
    now=
    # Without it a few lines would stay in head's memory until it has 4 KiB of them.
    if stdbuf -o0 true 2>/dev/null; then now='stdbuf -o0'; fi
    $now head -c $part >"$1" || { cat >/dev/null; return; }
    parts=1
    while echo "$parts" >"$1.parts" && $now head -c $part >"$1.end"; do
        [ "$(wc -c <"$1.end")" -eq $part ] || return
        mv -f "$1.end" "$1.last" || break
        parts=$((parts + 1))
    done
    cat >/dev/null
}
keep "$1"
