# What a job printed so far, or all: its name. The beginning and the end; where something is left out
# between them a line says how much.
cut=131072
out=$base/jobs/$1/out
if [ ! -s "$out.parts" ]; then
    [ ! -e "$out" ] || cat "$out"
else
    parts=$(cat "$out.parts")
    last=0
    [ ! -e "$out.last" ] || last=$cut
    end=0
    [ ! -e "$out.end" ] || end=$(wc -c <"$out.end")
    shown=$((last + end))
    [ "$shown" -le $cut ] || shown=$cut
    lost=$(((parts - 1) * cut + end - shown))
    [ "$lost" -gt 0 ] || lost=0
    cat "$out"
    [ "$lost" -eq 0 ] || printf '\n[... %s bytes left out ...]\n' "$lost"
    cat "$out.last" "$out.end" 2>/dev/null | tail -c "$shown"
fi
