# Removes files that were placed, what was left beside them, and what was remembered of them: the job that cleans, then
# the files. That job stays, so that it is found again.
own=$1
shift
for file in "$@"; do
    rm -f -- "$file" "${file%/*}/.${file##*/}.understudy."* || exit 72
done
rm -rf "$base/pending" "$base/staging" "$base/output"
for job in "$base/jobs"/*; do
    [ "${job##*/}" = "$own" ] || rm -rf "$job"
done
