#!/bin/bash
# Run a command of the test suite as root on a throw-away kernel with unified cgroup v2.
#
#   tests/vm/vm-run.sh [options] [--] COMMAND [ARG...]
#
# The machine's / is visible inside, read-only, below an overlay whose upper layer is
# a tmpfs: the guest may write everywhere and nothing reaches the machine, but for the
# scratch folder (-s), which is shared read-write and lies at the same path inside.
# COMMAND's stdout and stderr come out separately, its exit status is passed back;
# 124 = hard timeout, 125 = the VM did not boot or died before COMMAND ended. A boot
# that does not get as far as COMMAND is tried once more; COMMAND is begun but once.
# Whatever goes wrong, what the guest's console and processes show goes to stderr.
#
#   -t SECS     hard timeout from the start of the VM on          (300)
#   -b SECS     the part of it in which COMMAND must have begun   (60)
#               Neither counts the time that a busy machine lets the VM wait for
#               a CPU, up to three times SECS of -t.
#   -m MIB      guest memory                                      (2048)
#   -c N        guest CPUs                                        (2)
#   -s DIR      scratch folder, read-write, same path inside; may be repeated
#   -x DIR      folder that is a mount of its own and must be visible too
#               (read-only, same path inside); may be repeated
#   -w DIR      working directory inside       (the current one if visible, else /)
#   -e VAR=VAL  environment for COMMAND; may be repeated
#   -S          systemd is PID 1 (with dbus), COMMAND runs as vmrun.service
#   -H          with -S: systemd mounts v1 controllers and v2 beside them (hybrid)
#   -M MODS     more kernel modules to load, e.g. "veth bridge br_netfilter"
#   -d MIB      a blank virtio disk /dev/vda of that size (for io.max and mkfs)
#   -n          user network (slirp; needs virtio_net), address by ip= on the kernel line
#   -k FLAVOUR  cloud (6.1, virtiofs), cloud612 (6.12, virtiofs)
#               or full (6.1, 9p)                                 (cloud)
#   -a ACCEL    tcg, kvm                                          (tcg)
#   -v          kernel console on stderr
#   --prepare   only fetch the kernel and build the initramfs (cached), then exit
#   --uml       user-mode Linux instead of QEMU (no cpuset, 1 CPU; see README.md)
#
# Needs root, and from Debian 12: qemu-system-x86 (it depends on
# qemu-system-common, which holds virtiofsd there), busybox-static, and apt-get
# download access to linux-image-*-cloud-amd64 or user-mode-linux (unpacked into
# the cache, not installed). Cache: $VM_CACHE, else ~/.cache/manor/vm.
set -u
me=${0##*/}
die() { echo "$me: $*" >&2; exit 125; }

T=300 BOOT=60 MEM=2048 CPUS=2 WD= SYSTEMD=0 UNIFIED=1 MODS= DISK=0 NET=0 FLAV=cloud ACCEL=tcg VERB=0 PREP=0 UML=0
SCR=() XTRA=() ENVS=()
while [ $# -gt 0 ]; do
  case $1 in
    -t) T=$2; shift;; -b) BOOT=$2; shift;; -m) MEM=$2; shift;; -c) CPUS=$2; shift;;
    -s) SCR+=("$(realpath -e -- "$2")") || die "no folder $2"; shift;;
    -x) XTRA+=("$(realpath -e -- "$2")") || die "no folder $2"; shift;;
    -w) WD=$2; shift;; -e) ENVS+=("$2"); shift;;
    -S) SYSTEMD=1;; -H) UNIFIED=0;; -M) MODS="$MODS $2"; shift;; -d) DISK=$2; shift;; -n) NET=1;;
    -k) FLAV=$2; shift;; -a) ACCEL=$2; shift;; -v) VERB=1;;
    --prepare) PREP=1;; --uml) UML=1;;
    --) shift; break;; -h|--help) sed -n '2,/^set -u/p' "$0" | sed '$d;s/^# \{0,1\}//'; exit 0;;
    -*) die "unknown option $1";; *) break;;
  esac; shift
done
[ $PREP = 1 ] || [ $# -gt 0 ] || die "no command (-h for help)"
[ "$(id -u)" = 0 ] || die "must be root"
# its FP_SIZE is too small for what ptrace hands over there: it panics in put_fp_registers
[ $UML = 0 ] || ! grep -qw amx_tile /proc/cpuinfo || die "user-mode Linux 6.1 does not run on a CPU with AMX"
CACHE=${VM_CACHE:-${XDG_CACHE_HOME:-${HOME:-/root}/.cache}/manor/vm}
mkdir -p "$CACHE" || die "no cache"
CACHE=$(realpath "$CACHE")
[ -n "$WD" ] || WD=$PWD

# ---------------------------------------------------------------- preparation
fetch_deb() {  # PACKAGE TARGET : download one .deb (no install) and unpack it
  local d; d=$(mktemp -d) || return 1
  chmod 755 "$d"
  ( cd "$d" && apt-get -qq download "$1" >&2 2>/dev/null && dpkg-deb -x ./*.deb "$2" ); local r=$?
  rm -rf "$d"; return $r
}
moddeps() {  # KDIR NAME : print the .ko paths NAME needs, dependencies first
  local root=$1 n=${2//-/_} f dep
  case " $SEEN " in *" $n "*) return;; esac
  SEEN="$SEEN $n"
  f=$(awk -F/ -v n="$n" '{b=$NF; sub(/\.ko.*/,"",b); gsub(/-/,"_",b); if (b==n) {print; exit}}' "$root/.kolist")
  [ -n "$f" ] || return                       # built in, or not there
  for dep in $(kocat "$f" | tr '\0' '\n' | sed -n 's/^depends=//p' | head -1 | tr , ' '); do
    moddeps "$root" "$dep"
  done
  echo "$f"
}
kocat() { case $1 in *.xz) xz -dc "$1";; *.zst) zstd -qdc "$1";; *) cat "$1";; esac; }

pack() {
  cp "$CACHE/init.src" "$1/initramfs/init"; chmod 755 "$1/initramfs/init"
  ( cd "$1/initramfs" && find . | busybox cpio -o -H newc 2>/dev/null ) >"$1/initramfs.new" || die "cpio"
  mv "$1/initramfs.new" "$1/initramfs.cpio"
}
prepare_qemu() {
  local meta K V D s
  K=$CACHE/$FLAV
  if [ -e "$K/ok" ]; then cmp -s "$CACHE/init.src" "$K/initramfs/init" || pack "$K"; return; fi
  case $FLAV in cloud) meta=linux-image-cloud-amd64;; cloud612) meta=linux-image-6.12-cloud-amd64;; full) meta=linux-image-amd64;; *) die "flavour?";; esac
  D=$(mktemp -d "$CACHE/new.XXXXXX")
  V=${VM_KERNEL:-$(apt-cache depends "$meta" | sed -n 's/^ *Depends: \(linux-image-[^ ]*\)$/\1/p' | head -1)}
  [ -n "$V" ] || die "no kernel package (apt-get update first)"
  fetch_deb "$V" "$D" || die "cannot fetch $V"
  cp "$D"/boot/vmlinuz-* "$D/vmlinuz"; cp "$D"/boot/config-* "$D/config"
  ls "$D"/lib/modules >"$D/version" 2>/dev/null || ls "$D"/usr/lib/modules >"$D/version"
  [ -d "$D/lib/modules" ] || ln -s usr/lib "$D/lib"
  find "$D/lib/modules/" -name '*.ko*' >"$D/.kolist"
  # initramfs: busybox, the modules that bring up the root, one init script
  local I=$D/initramfs n=0 f; mkdir -p "$I"/{bin,dev,proc,sys,mod,mnt}
  cp "$(command -v busybox)" "$I/bin/busybox"
  SEEN=
  case $FLAV in cloud*) s="virtiofs";; full) s="9pnet_virtio 9p";; esac
  for m in virtio_pci virtio_mmio virtio_console $s overlay; do moddeps "$D" $m; done >"$D/boot.mods"
  while read -r f; do n=$((n+1)); kocat "$f" >"$I/mod/$(printf %03d $n).ko"; done <"$D/boot.mods"
  pack "$D"
  # uncompressed vmlinux for PVH direct boot (no decompression under emulation)
  unpack_vmlinux "$D/vmlinuz" "$D/vmlinux" || rm -f "$D/vmlinux"
  busybox depmod -b "$D" "$(cat "$D/version")" 2>/dev/null
  rm -rf "$D/boot" "$D/usr/share"; : >"$D/ok"
  rm -rf "$K"; mv "$D" "$K" || die "cache"
  sed -i "s#$D/#$K/#" "$K/.kolist" "$K/boot.mods"
}
u8()  { od -An -tu1 -j "$2" -N1 "$1" | tr -d ' '; }
u32() { od -An -tu4 -j "$2" -N4 "$1" | tr -d ' '; }
unpack_vmlinux() {  # the payload's place is in the boot protocol's setup header
  local s off len; s=$(u8 "$1" 497); off=$(( (s+1)*512 + $(u32 "$1" 584) )); len=$(u32 "$1" 588)
  tail -c +$((off+1)) "$1" | head -c "$len" >"$2.z"
  case $(od -An -tx1 -N4 "$2.z" | tr -d ' ') in
    02214c18) lz4 -dc <"$2.z" >"$2" 2>/dev/null;;      # legacy lz4; 4 bytes of length follow
    28b52ffd) zstd -dc <"$2.z" >"$2" 2>/dev/null;;
    fd377a58) xz -dc <"$2.z" >"$2" 2>/dev/null;;
    1f8b*) gzip -dc <"$2.z" >"$2" 2>/dev/null;;
  esac
  rm -f "$2.z"
  [ "$(od -An -tx1 -N4 "$2" 2>/dev/null | tr -d ' ')" = 7f454c46 ]
}
prepare_uml() {
  local K=$CACHE/uml D
  [ -e "$K/ok" ] && return
  D=$(mktemp -d "$CACHE/new.XXXXXX")
  fetch_deb user-mode-linux "$D" || die "cannot fetch user-mode-linux"
  mv "$D/usr/bin/linux.uml" "$D/linux.uml"
  mkdir -p "$D/lib"; mv "$D/usr/lib/uml/modules" "$D/lib/modules"
  ls "$D/lib/modules" >"$D/version"; find "$D/lib/modules/" -name '*.ko*' >"$D/.kolist"
  zcat "$D/usr/share/doc/user-mode-linux/config.gz" >"$D/config"
  rm -rf "$D/usr"; : >"$D/ok"; rm -rf "$K"; mv "$D" "$K"; sed -i "s#$D/#$K/#" "$K/.kolist"
}

# The guest's first stage. QEMU: /init of the initramfs. UML: init= on the host's /.
write_init() {
cat >"$CACHE/init.src.$$" <<'INIT'
#!/bin/busybox sh
B=/bin/busybox
for a in mount umount mkdir cat sh insmod switch_root ln echo cp chmod poweroff reboot sleep; do alias $a="$B $a"; done
mount -t proc proc /proc; mount -t sysfs sys /sys
arg() { local w; for w in $($B cat /proc/cmdline); do case $w in $1=*) echo "${w#*=}"; return;; esac; done; }
# not chroot: a process in a chroot may not make user namespaces
pivot() { cd $R; mkdir -p .old; $B pivot_root . .old; exec $B chroot . $B sh -c '/bin/busybox umount -l /.old; /bin/busybox rmdir /.old; exec "$@"' sh "$@"; }
MODE=$(arg vmrun.mode) R=
T() { read u x </proc/uptime; [ -c $R/dev/kmsg ] && $B echo "<2>vmrun: $u $1" >$R/dev/kmsg; }
fail() { echo "vmrun: boot failed: $*" >/dev/console; poweroff -f; }
case $MODE in
  virtiofs|9p)
    mount -t devtmpfs dev /dev
    T init
    for m in /mod/*.ko; do insmod $m || echo "vmrun: insmod $m failed"; done
    mkdir -p /h /low /ctl /ov
    if [ $MODE = virtiofs ]; then
      i=0; until mount -t virtiofs host /h 2>/dev/null; do i=$((i+1)); [ $i -gt 50 ] && fail virtiofs; $B usleep 100000; done
    else
      mkdir -p /h/root /h/ctl
      mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=loose,ro root /h/root || fail 9p
      mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none ctl /h/ctl || fail 9p-ctl
    fi
    T shares
    LOW=/h/root CTL=/h/ctl ;;
  uml)
    # /dev is the kernel's devtmpfs; stage below /run, a tmpfs from here on
    mount -t tmpfs -o mode=755 stage /mnt || fail stage
    mkdir -p /mnt/h/root /mnt/h/ctl /mnt/ov
    mount -t hostfs -o / none /mnt/h/root || fail hostfs; mount -o remount,ro,bind /mnt/h/root
    mount -t hostfs -o "$(arg vmrun.ctl)" none /mnt/h/ctl || fail hostfs-ctl
    for m in $($B cat /mnt/h/ctl/bootmods); do insmod $m || echo "vmrun: insmod $m failed"; done
    LOW=/mnt/h/root CTL=/mnt/h/ctl ;;
esac
O=/ov; [ "$MODE" = uml ] && O=/mnt/ov
mount -t tmpfs -o mode=755 ov $O
mkdir $O/up $O/wk $O/root
mount -t overlay -o lowerdir=$LOW,upperdir=$O/up,workdir=$O/wk overlay $O/root || fail overlay
R=$O/root
mkdir -p $R/proc $R/sys $R/dev $R/run $R/tmp
mount -t tmpfs -o mode=755 run $R/run
mount -t tmpfs -o mode=1777 tmp $R/tmp
mkdir -p $R/run/vmrun $R/run/lock
# plain tmpfs where programs keep overlays of their own (an overlay can't hold an upper dir)
for d in /var/lib/containerd /var/lib/docker /var/lib/kubelet /var/tmp; do mkdir -p $R$d; mount -t tmpfs d $R$d; done
mount -t proc proc $R/proc; mount -t sysfs sys $R/sys
if [ "$MODE" = uml ]; then mount -t devtmpfs dev $R/dev; else mount -o move /dev $R/dev; fi
T overlay
mkdir -p $R/dev/pts $R/dev/shm $R/dev/mqueue
mount -t devpts -o mode=620,ptmxmode=666 pts $R/dev/pts
mount -t tmpfs -o mode=1777 shm $R/dev/shm
[ "$(arg systemd.unified_cgroup_hierarchy)" = 0 ] ||  # else systemd takes what it finds
  mount -t cgroup2 -o nsdelegate,memory_recursiveprot cgroup $R/sys/fs/cgroup || mount -t cgroup2 cgroup $R/sys/fs/cgroup
mount -o bind $CTL $R/run/vmrun
[ -e $R/dev/fd ] || ln -s /proc/self/fd $R/dev/fd
for n in 0:stdin 1:stdout 2:stderr; do [ -e $R/dev/${n#*:} ] || ln -s /proc/self/fd/${n%:*} $R/dev/${n#*:}; done
# rw scratch folders and folders that are mounts of their own on the host
while read -r kind n path; do
  mkdir -p "$R$path"
  case $MODE in
    virtiofs) mount -o bind /h/$kind$n "$R$path";;
    9p) mount -t 9p -o trans=virtio,version=9p2000.L,msize=512000,cache=none $kind$n "$R$path";;
    uml) mount -t hostfs $([ $kind = rw ] || echo -r) -o "$path" none "$R$path";;
  esac || echo "vmrun: mount $path failed"
done <$CTL/mounts
KV=$(cat /proc/sys/kernel/osrelease); KD=$(cat $CTL/kdir)
mkdir -p $R/lib/modules/$KV; mount -o bind $LOW$KD/lib/modules/$KV $R/lib/modules/$KV
# a host that is itself a container image would make systemd think it were in one
$B rm -f $R/.dockerenv $R/run/.containerenv
: >$R/etc/fstab; echo vmrun >$R/etc/hostname; echo vmrun >/proc/sys/kernel/hostname
T switch
if [ -e $CTL/systemd ]; then
  cp $CTL/units/* $R/etc/systemd/system/
  # no generators: no fstab, gpt, sysv, ssh or getty units, and seconds saved
  mkdir -p $R/etc/systemd/system-generators $R/etc/systemd/system-environment-generators
  for u in $R/lib/systemd/system-generators/* $R/usr/local/lib/systemd/system-generators/*; do $B ln -sf /dev/null $R/etc/systemd/system-generators/${u##*/}; done
  for u in $R/usr/lib/systemd/system-environment-generators/*; do $B ln -sf /dev/null $R/etc/systemd/system-environment-generators/${u##*/}; done
  for u in $(cat $CTL/masked); do $B ln -sf /dev/null $R/etc/systemd/system/$u; done
  [ "$MODE" = uml ] && pivot /lib/systemd/systemd
  exec $B switch_root $R /lib/systemd/systemd
fi
[ "$MODE" = uml ] && pivot /bin/bash /run/vmrun/stage2
exec $B switch_root $R /bin/bash /run/vmrun/stage2
INIT
if ! cmp -s "$CACHE/init.src.$$" "$CACHE/init.src"; then
  mv "$CACHE/init.src.$$" "$CACHE/init.src"
else rm -f "$CACHE/init.src.$$"; fi
}

write_init
if [ $UML = 1 ]; then prepare_uml; K=$CACHE/uml; else prepare_qemu; K=$CACHE/$FLAV; fi
[ $PREP = 1 ] && { echo "$K: $(cat "$K/version")"; exit 0; }

# --------------------------------------------------------------------- one run
RUN=$(mktemp -d /tmp/vmrun.XXXXXX); CTL=$RUN/ctl; mkdir -p "$CTL/units"
PIDS=() DOG=
cleanup() { local p; [ -z "$DOG" ] || { kill "$DOG"; wait "$DOG"; } 2>/dev/null; for p in "${PIDS[@]}"; do kill -9 "$p" 2>/dev/null; wait "$p" 2>/dev/null; done; rm -rf "$RUN"; }
trap cleanup EXIT
trap 'exit 130' INT; trap 'exit 143' TERM

printf '%s\n' "$K" >"$CTL/kdir"
: >"$CTL/mounts"
i=0; for d in "${SCR[@]}";  do echo "rw $i $d"; i=$((i+1)); done >>"$CTL/mounts"
i=0; for d in "${XTRA[@]}"; do echo "ro $i $d"; i=$((i+1)); done >>"$CTL/mounts"
SEEN=
case " $MODS " in *" loop "*) ;; *) MODS="loop $MODS";; esac
[ "$NET" = 1 ] && MODS="$MODS virtio_net"; [ "$DISK" -gt 0 ] && MODS="$MODS virtio_blk"
for m in $MODS; do moddeps "$K" "$m"; done | sed "s#^$K/#/#" >"$CTL/mods"
{ for e in "${ENVS[@]}"; do printf 'export %q\n' "$e"; done
  printf 'cd %q 2>/dev/null || cd /\n' "$WD"; printf '%q ' "$@"; echo; } >"$CTL/cmd"
# second stage, inside: as PID 1, or below systemd as vmrun.service
cat >"$CTL/stage2" <<'S2'
export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin HOME=/root TERM=dumb LANG=C.UTF-8
V=/run/vmrun
T() { read u x </proc/uptime; echo "<2>vmrun: $u $1" >/dev/kmsg; }
T stage2
for m in $(cat $V/mods); do
  case $m in *.xz) xz -dc $m >/tmp/.m.ko; m=/tmp/.m.ko;; esac
  busybox insmod $m 2>/dev/null; rm -f /tmp/.m.ko
done
busybox ip link set lo up 2>/dev/null
if [ -e $V/net ]; then
  busybox ip link set eth0 up; busybox ip addr add 10.0.2.15/24 dev eth0; busybox ip route add default via 10.0.2.2
  echo nameserver 10.0.2.3 >/etc/resolv.conf
fi
if [ ! -e $V/systemd ]; then     # leave the root cgroup, hand the controllers down
  mkdir -p /sys/fs/cgroup/init; echo $$ >/sys/fs/cgroup/init/cgroup.procs
  for c in $(cat /sys/fs/cgroup/cgroup.controllers); do echo +$c >/sys/fs/cgroup/cgroup.subtree_control; done
fi
T modules,net,cgroup
OUT=/dev/null ERR=/dev/null
for p in /sys/class/virtio-ports/*/name; do
  [ -e $p ] || continue
  d=${p%/name}; d=/dev/${d##*/}
  case $(cat $p) in out) OUT=$d;; err) ERR=$d;; esac
done
[ -e $V/uml ] && { OUT=/dev/tty1 ERR=/dev/tty2; stty -F $OUT raw -echo; stty -F $ERR raw -echo; }
cut -d' ' -f1 /proc/uptime >$V/uptime
# through pipes, so that COMMAND may reopen /dev/stdout
mkfifo /run/.o /run/.e
cat /run/.o >$OUT & po=$!
cat /run/.e >$ERR & pe=$!
exec 5>/run/.o 6>/run/.e; rm -f /run/.o /run/.e
setsid bash $V/cmd </dev/null >&5 2>&6 5>&- 6>&- & c=$!
exec 5>&- 6>&-
T started
wait $c; rc=$?; T "ended $rc"
# background children that still hold the pipes get 2 s, then the machine goes
( sleep 2; kill $po $pe ) 2>/dev/null & k=$!
wait $po $pe 2>/dev/null; kill $k 2>/dev/null
echo $rc >$V/rc.new; mv $V/rc.new $V/rc; sync -f $V/rc
busybox poweroff -f
S2
if [ $SYSTEMD = 1 ]; then
  : >"$CTL/systemd"
  cat >"$CTL/units/vmrun.target" <<'U'
[Unit]
Description=vm-run
Requires=vmrun.service dbus.socket
After=dbus.socket
AllowIsolate=yes
U
  cat >"$CTL/units/vmrun.service" <<'U'
[Unit]
Description=vm-run command
DefaultDependencies=no
After=dbus.socket systemd-journald.socket
[Service]
Type=simple
ExecStart=/bin/bash /run/vmrun/stage2
Delegate=yes
KillMode=process
TasksMax=infinity
LimitNOFILE=1048576
U
  for u in dbus.service dbus.socket; do
    # without basic.target: the bus starts at once, nothing else of the host's boot runs
    sed 's/^\[Unit\]/[Unit]\nDefaultDependencies=no/' "/lib/systemd/system/$u" >"$CTL/units/$u" || die "no dbus"
  done
  echo "proc-sys-fs-binfmt_misc.automount dev-hugepages.mount dev-mqueue.mount sys-kernel-debug.mount sys-kernel-tracing.mount sys-kernel-config.mount sys-fs-fuse-connections.mount systemd-logind.service" >"$CTL/masked"
fi

# ------------------------------------------------------------------ one attempt
start_uml() {
  : >"$CTL/uml"; SEEN=; moddeps "$K" overlay >"$CTL/bootmods"
  local CON=null,fd:9; if [ $VERB = 1 ]; then exec 9>&8; else exec 9>"$RUN/console"; fi
  # its memory lies in a file below TMPDIR: a tmpfs, if there is one
  cp "$CACHE/init.src" "$RUN/init"; chmod 755 "$RUN/init"
  TMPDIR=/dev/shm setsid "$K/linux.uml" mem=${MEM}M root=/dev/root rootfstype=hostfs rootflags=/ ro \
    $([ $VERB = 1 ] || echo quiet loglevel=3) init="$RUN/init" vmrun.mode=uml vmrun.ctl="$CTL" ubd0=/dev/null \
    lsm=none \
    $([ $SYSTEMD = 1 ] && echo systemd.unit=vmrun.target systemd.unified_cgroup_hierarchy=$UNIFIED systemd.show_status=0 systemd.log_level=warning) \
    con=null con0=$CON con1=null,fd:7 con2=null,fd:8 </dev/null >"$RUN/uml.log" 2>&1 &
  VM=$!
}
start_virtiofsd() {
  local VFD=${VIRTIOFSD:-} p i
  for p in /usr/libexec/virtiofsd /usr/lib/qemu/virtiofsd; do [ -n "$VFD" ] || { [ -x $p ] && VFD=$p; }; done
  [ -n "$VFD" ] || die "no virtiofsd"
  # a private mount namespace: / bound read-only, the scratch folders read-write
  cat >"$RUN/fs.sh" <<'FS'
set -e
RUN=$1 VFD=$2; T=$RUN/tree
mount --make-rprivate /
mkdir -p $T; mount -t tmpfs -o mode=755 tree $T; mkdir $T/root $T/ctl
mount --bind / $T/root; mount -o remount,bind,ro $T/root
mount --bind $RUN/ctl $T/ctl
while read -r kind n path; do
  mkdir $T/$kind$n; mount --bind "$path" $T/$kind$n; [ $kind = rw ] || mount -o remount,bind,ro $T/$kind$n
done <$RUN/ctl/mounts
case $VFD in
  */qemu/virtiofsd) exec $VFD --socket-path=$RUN/fs.sock -o source=$T -o cache=${VM_FSCACHE:-always} -o sandbox=chroot -o xattr --thread-pool-size=2;;
  *) exec $VFD --socket-path=$RUN/fs.sock --shared-dir=$T --cache=${VM_FSCACHE:-always} --sandbox=chroot --xattr;;
esac
FS
  rm -f "$RUN/fs.sock"
  setsid unshare -m bash "$RUN/fs.sh" "$RUN" "$VFD" </dev/null >"$RUN/virtiofsd.log" 2>&1 7>&- 8>&- 9>&- &
  FSD=$!; PIDS+=($FSD)
  for i in $(seq 1500); do [ -S "$RUN/fs.sock" ] && return; kill -0 $FSD 2>/dev/null || break; sleep 0.02; done
  cat "$RUN/virtiofsd.log" >&2; die "virtiofsd did not start"
}
start_qemu() {
  local MODE=virtiofs KERN=$K/vmlinuz Q A; [ $FLAV = full ] && MODE=9p
  Q=(qemu-system-x86_64 -nodefaults -no-user-config -display none -no-reboot -m "$MEM" -smp "$CPUS")
  [ -e "$K/vmlinux" ] && KERN=$K/vmlinux
  # One thread for all guest CPUs: with one each, a CPU now and then does not see the kernel take the breakpoint of its
  # code patching back, and traps there for ever (QEMU 7.2). The work of our tests is mostly one process's anyway.
  case $ACCEL in
    tcg) Q+=(-machine "${VM_MACHINE:-q35},memory-backend=ram" -accel "tcg,thread=single,tb-size=${VM_TB:-256}" -cpu "${VM_CPU:-max,-la57,-pku}");;
    kvm) Q+=(-machine "${VM_MACHINE:-q35},memory-backend=ram" -accel kvm -cpu "${VM_CPU:-host}");;
  esac
  Q+=(-object "memory-backend-memfd,id=ram,size=${MEM}M,share=on")
  [ $VERB = 1 ] && Q+=(-chardev file,id=con,path=/dev/fdset/3,append=on -add-fd fd=9,set=3) || Q+=(-chardev "file,id=con,path=$RUN/console")
  Q+=(-serial chardev:con)
  exec 9>&8
  # its monitor reads a pipe and writes a file
  rm -f "$RUN/monitor.in"; mkfifo "$RUN/monitor.in"; : >"$RUN/monitor.out"
  Q+=(-chardev "pipe,id=mon,path=$RUN/monitor" -mon chardev=mon,mode=control)
  Q+=(-add-fd fd=7,set=1 -add-fd fd=8,set=2 -device virtio-serial-pci -chardev file,id=out,path=/dev/fdset/1,append=on -device virtserialport,chardev=out,name=out
      -chardev file,id=err,path=/dev/fdset/2,append=on -device virtserialport,chardev=err,name=err)
  if [ $MODE = virtiofs ]; then
    start_virtiofsd
    Q+=(-chardev "socket,id=fs,path=$RUN/fs.sock" -device vhost-user-fs-pci,chardev=fs,tag=host,queue-size=1024)
  else
    p9() { Q+=(-fsdev "local,id=$1,path=$2,security_model=none,multidevs=remap$3" -device "virtio-9p-pci,fsdev=$1,mount_tag=$1"); }
    p9 root / ,readonly=on; p9 ctl "$CTL" ""
    while read -r kind n path; do p9 "$kind$n" "$path" "$([ $kind = ro ] && echo ,readonly=on)"; done <"$CTL/mounts"
  fi
  if [ "$DISK" -gt 0 ]; then rm -f "$RUN/disk"; truncate -s "${DISK}M" "$RUN/disk"; Q+=(-drive "file=$RUN/disk,format=raw,if=none,id=d,cache=unsafe" -device virtio-blk-pci,drive=d); fi
  if [ $NET = 1 ]; then : >"$CTL/net"; Q+=(-netdev user,id=n -device virtio-net-pci,netdev=n,romfile=); fi
  A="console=ttyS0 panic=-1 reboot=t mitigations=off init_on_alloc=0 nokaslr no_timer_check tsc=reliable random.trust_cpu=on net.ifnames=0 audit=0 lsm=landlock rcupdate.rcu_expedited=1 vmrun.mode=$MODE"
  A="$A unknown_nmi_panic panic_print=0x41"  # what look_inside asks for: every task and CPU
  [ $VERB = 1 ] && A="$A loglevel=7" || A="$A quiet loglevel=3"
  [ $SYSTEMD = 1 ] && A="$A systemd.unit=vmrun.target systemd.unified_cgroup_hierarchy=$UNIFIED systemd.show_status=0 systemd.log_level=warning systemd.log_target=kmsg"
  Q+=(-kernel "$KERN" -initrd "$K/initramfs.cpio" -append "$A ${VM_APPEND:-}")
  setsid "${Q[@]}" </dev/null 2>"$RUN/qemu.log" &
  VM=$!
}
# How far our processes are, thread by thread: name, state, ticks in user and kernel mode, where it waits.
threads() {
  local t
  for t in /proc/"$VM"/task/* ${FSD:+/proc/$FSD/task/*}; do
    echo "${t#/proc/} $(cat "$t/comm") $(sed 's/.*) //' "$t/stat" | cut -d' ' -f1,12,13) $(cat "$t/wchan")"
  done 2>/dev/null
}
# A guest that hangs is interrupted: its kernel panics and tells the console where every task waits.
look_inside() {
  local i
  threads >"$RUN/threads"
  [ -p "$RUN/monitor.in" ] || return
  printf '{"execute": "%s"}\n' qmp_capabilities query-status inject-nmi |
    timeout 1 bash -c 'cat >"$1"' sh "$RUN/monitor.in" || return  # nobody reads it
  for i in $(seq 75); do kill -0 "$VM" 2>/dev/null || return; sleep 0.2; done
}
end_late() {  # WORD : what this run is remembered as
  echo "$STARVED" >"$RUN/$1"; look_inside; kill -9 -"$VM" 2>/dev/null || kill -9 "$VM"
}
# Seconds that the VM was ready to run and had no CPU to run on: that much a busy machine is late (sched-stats.rst).
starved() {
  local f wait most=0
  for f in "${VM_PROC:-/proc}/$VM"/task/*/schedstat; do
    read -r _ wait _ <"$f" && [ "$wait" -gt $most ] && most=$wait
  done 2>/dev/null
  STARVED=$((most / 1000000000))
}
watch() {
  local s= begin=$SECONDS had STARVED
  trap 'kill $s 2>/dev/null; exit' TERM
  while sleep 1 & s=$!; wait $s; s=; do
    starved
    had=$((SECONDS - begin - STARVED))
    [ $had -ge "$BOOT" ] && [ ! -e "$CTL/uptime" ] && { end_late stuck; exit; }
    [ $had -ge "$T" ] || [ $((SECONDS - begin)) -ge $((T * 4)) ] && { end_late late; exit; }
  done
}
# Boot and run COMMAND. Ends with $RUN/stuck or $RUN/late if it had to be ended.
attempt() {
  # QEMU and UML get write-only pipes, whatever our own stdout is (terminal, socket)
  exec 7> >(exec cat >&1) ; CATS=($!)
  exec 8> >(exec cat >&2 7>&-); CATS+=($!)
  FSD=; if [ $UML = 1 ]; then start_uml; else start_qemu; fi
  PIDS+=($VM)
  exec 7>&- 8>&- 9>&-
  watch >/dev/null 2>&1 & DOG=$!
  wait "$VM" 2>/dev/null; vrc=$?
  kill "$DOG" 2>/dev/null; wait "$DOG" 2>/dev/null; DOG=
  if [ $UML = 1 ]; then kill -9 -"$VM" 2>/dev/null; fi
  # nothing that the guest has asked for is done after this
  [ -z "$FSD" ] || { kill -9 "$FSD" 2>/dev/null; wait "$FSD" 2>/dev/null; }
  PIDS=()
  wait "${CATS[@]}" 2>/dev/null
}
# What there is to see of a run that went wrong. Of what look_inside has brought to light: who waits where, but for
# the kernel's own threads; frames that may be leftovers ("?"), registers and the scheduler's tables are left out.
readable() {
  tr -d '\r' | sed 's/\x1b\[[0-9;?]*[A-Za-z]//g' | awk '
    /Sched Debug Version/ {tables = 1}
    /task:.* ppid:/ {tables = 0; hidden = / (pid|ppid): *2 /}
    tables || hidden || /\] +\? |\] R(AX|DX|BP|SP|10|13): |\] RIP: 0033|\] (FS|CS|CR2): |\] Code: |<\/?(TASK|NMI)>|Call Trace:|Hardware name:/ {next}
    {print}' | tail -n 100
}
tell() {
  local f
  for f in console uml.log qemu.log monitor.out virtiofsd.log threads; do
    [ ! -s "$RUN/$f" ] || { echo "--- the end of $f:"; readable <"$RUN/$f"; }
  done
  echo "---"
} >&2

for try in 1 2; do
  rm -f "$RUN"/{stuck,late,console,uml.log,qemu.log,monitor.out,virtiofsd.log,threads}
  attempt
  [ -n "${VM_TIMES:-}" ] && cp "$CTL/uptime" "$VM_TIMES" 2>/dev/null
  if [ -s "$CTL/rc" ]; then exit "$(cat "$CTL/rc")"; fi
  if [ -e "$RUN/stuck" ]; then echo "$me: the command had not begun after $BOOT s, and $(cat "$RUN/stuck") s without a CPU"
  elif [ -e "$RUN/late" ]; then echo "$me: timeout after $T s, and $(cat "$RUN/late") s without a CPU"
  else echo "$me: the VM ended ($vrc) before the command did"; fi >&2
  tell
  if [ -e "$CTL/uptime" ]; then [ -e "$RUN/late" ] && exit 124; exit 125; fi
  [ $try = 2 ] || echo "$me: the command has not begun: one more boot" >&2
done
exit 125
