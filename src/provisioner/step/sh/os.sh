# The running operating system as ID-VERSION_ID of os-release(5).
ID= VERSION_ID=
if [ -r /etc/os-release ]; then
    . /etc/os-release
elif [ -r /usr/lib/os-release ]; then
    . /usr/lib/os-release
fi
echo "${ID:-linux}${VERSION_ID:+-$VERSION_ID}"
