# The way to an address, as the kernel would take it.
ip -o route get "$1" 2>&1 || true
