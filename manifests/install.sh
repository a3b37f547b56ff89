#!/bin/sh
# Put Manor on a node whose root directory is at $HOST: the packages below $PREFIX, the shim and manor-oci in $BIN.
# The node's own Python (3.11 or newer) runs it. Run again to upgrade, or to go back to an earlier version.
#
# Each run has a directory of its own, which nothing changes afterwards. What upgrades a node is the replacement of the
# two programs, each at once: who runs the earlier one meanwhile has its code beside it. That stays until the next run.
# Shims that are running need neither: they have loaded everything they will ever need.
set -eu
umask 022  # root will run it: nobody else may put anything into it
HOST=${HOST:-/host} PREFIX=${PREFIX:-/opt/manor} BIN=${BIN:-/usr/local/bin}
here=$(dirname "$0")

chroot "$HOST" python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "install: the node has no Python 3.11 or newer" >&2; exit 1; }

mkdir -p "$HOST$PREFIX" "$HOST$BIN"
new=$(mktemp -d "$HOST$PREFIX/code.XXXXXX")
# What the shim's program refers to stays, whatever goes wrong after that.
trap 'grep -q "${new##*/}" "$HOST$BIN/containerd-shim-manor-v2" 2>/dev/null || rm -rf "$new"' EXIT
chmod 755 "$new"
cp -R "$here/runtime" "$here/shim" "$new/"
[ ! -d "$here/jeepney" ] || cp -R "$here/jeepney" "$new/"  # for systemd's cgroup driver, if the node has none of its own
chroot "$HOST" sh -c 'cd "$0" && exec python3 -m shim.install "$1"' "$PREFIX/${new##*/}" "$BIN"
trap - EXIT

# All but this one and the one before; until there are two, the layout of 0.1 is the one before.
before=0
for old in $(ls -dt "$HOST$PREFIX"/code.*); do
    [ "$old" != "$new" ] || continue
    [ "$before" = 0 ] || rm -rf "$old"
    before=1
done
[ "$before" = 0 ] || rm -rf "$HOST$PREFIX/runtime" "$HOST$PREFIX/shim" "$HOST$PREFIX/jeepney"
