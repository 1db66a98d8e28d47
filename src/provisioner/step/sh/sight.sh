# Whether a provisioner has been at work on this installation, and the host keys in the folder $1.
if [ -e "$base/fence" ]; then
    echo used
else
    echo fresh
fi
for key in "$1"/ssh_host_*_key.pub; do
    [ -r "$key" ] && cat "$key"
done
:
