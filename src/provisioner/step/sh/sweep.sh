# Removes files that were placed, and what was remembered of them.
rm -f -- "$@" || exit 72
rm -rf "$base/pending"
