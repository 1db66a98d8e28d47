# Makes folders, open to read as a package would make them.
umask 022
mkdir -p "$@" 2>&1 || exit 72
