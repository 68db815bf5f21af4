#!/bin/sh
# An IPAM plugin that leases the one address of its configuration (ipam.lease4, ipam.lease6), as one that asks a DHCP server
# would: a lease is a file in $LEASES, and what was asked is written into $LEASES/log. While $LEASES/full is there, the
# server has nothing to give.
set -eu
leases=/run/leases
config=$(cat)
key="$CNI_CONTAINERID-$CNI_IFNAME"

value() { printf '%s' "$config" | sed -n 's/.*"'"$1"'": *"\([^"]*\)".*/\1/p'; }
refuse() {
    printf '{"cniVersion": "%s", "code": %s, "msg": "%s"}' "$(value cniVersion)" "$1" "$2"
    exit 1
}

echo "$CNI_COMMAND $key" >>"$leases/log"
case $CNI_COMMAND in
ADD)
    [ ! -e "$leases/full" ] || refuse 110 "the server has no address left"
    : >"$leases/lease-$key"
    printf '{"cniVersion": "%s", "ips": [{"version": "4", "address": "%s"}, {"version": "6", "address": "%s"}], "dns": {"nameservers": ["192.0.2.53"]}}' \
        "$(value cniVersion)" "$(value lease4)" "$(value lease6)"
    ;;
DEL) rm -f "$leases/lease-$key" ;;
CHECK) [ -e "$leases/lease-$key" ] || refuse 111 "the lease is lost" ;;
GC)
    for lease in "$leases"/lease-*; do
        container=${lease#"$leases/lease-"}
        container=${container%-*}
        case $config in *"\"$container\""*) ;; *) rm -f "$lease" ;; esac
    done
    ;;
STATUS) [ ! -e "$leases/full" ] || refuse 50 "the server has no address left" ;;
VERSION) printf '{"cniVersion": "1.1.0", "supportedVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"]}' ;;
esac
