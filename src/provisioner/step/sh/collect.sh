# What a job printed: its name.
show "$base/jobs/$1/out"
if [ -s "$base/jobs/$1/err" ]; then
    echo "--- stderr ---"
    show "$base/jobs/$1/err"
fi
