#!/bin/sh
# image.sh NATS_SERVER [IMAGE]: make sure the image of docker-compose.yml is there.
# If it can't be pulled, builds a STAND-IN under the same tag: the given server
# binary and busybox (sh, wget), both static, nothing else, as FROM scratch.
set -eu
server=$1 image=${2:-nats:2.15.1-alpine} busybox=${BUSYBOX:-/bin/busybox}
if docker image inspect "$image" >/dev/null 2>&1; then
    echo "image.sh: $image is here already"; exit 0
fi
if timeout 120 docker pull -q "$image"; then
    echo "image.sh: pulled $image"; exit 0
fi
"$server" --version && "$busybox" true # fail here, not in a container
dir=$(mktemp -d); trap 'rm -rf "$dir"' EXIT
mkdir -p "$dir/bin" "$dir/usr/local/bin"
install -m 755 "$server" "$dir/usr/local/bin/nats-server"
install -m 755 "$busybox" "$dir/bin/busybox"
ln -s busybox "$dir/bin/sh"; ln -s busybox "$dir/bin/wget"
# import and not build: no builder plugin, no Dockerfile.
tar -C "$dir" --owner=0 --group=0 -c . | docker import \
    -c 'ENTRYPOINT ["/usr/local/bin/nats-server"]' -c 'LABEL labkit.standin=true' \
    -m 'stand-in, not the official image' - "$image"
echo "image.sh: $image could not be pulled: this is a STAND-IN built from $server and $busybox" >&2
