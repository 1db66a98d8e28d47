# The way to an address, as the kernel would take it from another one, or from any.
PATH=$path
ip -o route get "$1" ${2:+from "$2"} 2>&1 || true
