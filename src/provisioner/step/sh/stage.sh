# A folder for an upload: the job's name.
mkdir -p "$base/staging" "$base/jobs" || { room "$base"; exit 70; }
# What provisioners left that died while they uploaded.
find "$base/staging" -mindepth 1 -maxdepth 1 -mmin +60 -exec rm -rf {} + 2>/dev/null
mktemp -d "$base/staging/$1.XXXXXXXX" || { room "$base"; exit 70; }
