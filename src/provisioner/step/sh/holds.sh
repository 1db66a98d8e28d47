# Who has the virtual address, and what is told by ARP: the virtual address, the spare's own or
# nothing. First their links, or "none"; then, of IPv4, arp_ignore and arp_announce, which count as
# the higher of the link's and of all.
PATH=$path
link() {
    found=$(ip -o addr show to "$1") || exit 70
    set -- $found
    echo "${2:-none}"
}
link "$1"
if [ -z "$2" ]; then exit 0; fi
own=$(link "$2") || exit 70
echo "$own"
case $2 in *:*) exit 0 ;; esac
for key in arp_ignore arp_announce; do
    all=$(cat "/proc/sys/net/ipv4/conf/all/$key") || exit 70
    here=$(cat "/proc/sys/net/ipv4/conf/$own/$key" 2>/dev/null) || here=$all
    [ "$here" -gt "$all" ] || here=$all
    echo "$here"
done
