#!/bin/sh
# Put Manor on a node whose root directory is at $HOST: the packages below $PREFIX, the shim in $BIN.
# The node's own Python (3.11 or newer) runs it. Shims that are running go on as they are: they have loaded
# everything they will ever need. Run again to upgrade.
set -eu
HOST=${HOST:-/host} PREFIX=${PREFIX:-/opt/manor} BIN=${BIN:-/usr/local/bin}
here=$(dirname "$0")

chroot "$HOST" python3 -c 'import sys; sys.exit(sys.version_info < (3, 11))' ||
    { echo "install: the node has no Python 3.11 or newer" >&2; exit 1; }

# Beside its place first, so that the packages are never half there.
new=$HOST$PREFIX.new.$$
old=$HOST$PREFIX.old.$$
trap 'rm -rf "$new" "$old"' EXIT
mkdir -p "$new" "$HOST$BIN"
cp -R "$here/runtime" "$here/shim" "$new/"
[ ! -d "$here/jeepney" ] || cp -R "$here/jeepney" "$new/"  # for systemd's cgroup driver, if the node has none of its own
[ ! -e "$HOST$PREFIX" ] || mv "$HOST$PREFIX" "$old"
mv "$new" "$HOST$PREFIX"
chroot "$HOST" sh -c 'cd "$0" && exec python3 -m shim.install "$1"' "$PREFIX" "$BIN"
