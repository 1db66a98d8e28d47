#!/bin/sh
# The script of the software "nginx" in the lab's catalogue: from the package repository that every server sees.
set -eu
export DEBIAN_FRONTEND=noninteractive
apt-get -q update
apt-get -q install -y --no-install-recommends nginx-light
# Its default_server would answer in place of the role's site.
rm -f /etc/nginx/sites-enabled/default
