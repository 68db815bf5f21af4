#!/bin/sh
# Makes a container image that holds busybox and nothing else, without a registry: image.sh FILE. The file is an archive
# that `podman load` and `ctr image import` take; the image is called weft.test/busybox:1. busybox must be linked statically.
set -eu
archive=$1
busybox=$(command -v busybox)
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

mkdir -p "$work/root/bin" "$work/root/tmp"
cp "$busybox" "$work/root/bin/busybox"
for name in $("$busybox" --list); do
    [ "$name" = busybox ] || ln -s busybox "$work/root/bin/$name"
done
# Sorted, of root and of one time: the same busybox makes the same image.
tar -C "$work/root" --sort=name --owner=0 --group=0 --numeric-owner --mtime=@0 -cf "$work/layer.tar" .
digest=$(sha256sum "$work/layer.tar" | cut -d ' ' -f 1)
case $(uname -m) in
aarch64) architecture=arm64 ;;
*) architecture=amd64 ;;
esac
cat >"$work/config.json" <<END
{"architecture": "$architecture", "os": "linux",
 "config": {"Env": ["PATH=/bin"], "Cmd": ["sh"]},
 "rootfs": {"type": "layers", "diff_ids": ["sha256:$digest"]},
 "history": [{"created_by": "weft tests/clients/image.sh"}]}
END
echo '[{"Config": "config.json", "RepoTags": ["weft.test/busybox:1"], "Layers": ["layer.tar"]}]' >"$work/manifest.json"
tar -C "$work" -cf "$archive" manifest.json config.json layer.tar
