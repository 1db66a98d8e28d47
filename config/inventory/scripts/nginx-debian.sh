#!/bin/sh
# Installs nginx from Debian's packages. Its site of the package is taken away: the shop is the only one.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -q -o DPkg::Lock::Timeout=60 update
apt-get -q -y -o DPkg::Lock::Timeout=60 install --no-install-recommends nginx
rm -f /etc/nginx/sites-enabled/default
