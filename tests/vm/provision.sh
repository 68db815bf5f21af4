#!/bin/sh
# What a Debian machine of Vagrant or Lima needs for Weft's tests: the tools that they use, and a newer kernel where that is
# asked for, which is there after the next start. The kernel: first argument, else what lima.yaml has left.
set -eu
export DEBIAN_FRONTEND=noninteractive
kernel=${1:-$(cat /run/weft-kernel)}

if [ "$kernel" = newest ]; then
    . /etc/os-release
    backports=$VERSION_CODENAME-backports
    mirror=$(apt-get indextargets --format '$(REPO_URI)' "Codename: $VERSION_CODENAME" | head -n 1)
    echo "deb $mirror $backports main" >/etc/apt/sources.list.d/weft-backports.list
fi
apt-get --quiet update
apt-get --quiet --yes install --no-install-recommends \
    bpftool ethtool iproute2 iputils-ping iputils-tracepath mtr-tiny strace traceroute
if [ "$kernel" = newest ]; then
    apt-get --quiet --yes --target-release "$backports" install linux-image-amd64
fi
