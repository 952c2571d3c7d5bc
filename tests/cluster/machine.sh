# Boots a machine of tests/cluster: `sh machine.sh TOP NAME USER`, as the first process of namespaces of its own.
# Its file system is this machine's, copy on write: what it changes is kept in TOP/NAME and is seen by it alone.
set -e
top=$1 name=$2 user=$3 disk=$1/$2
hostname "$name"
ip link set lo up
mkdir -p "$disk/changes" "$disk/work" "$disk/root"
mount -t overlay -o "lowerdir=/,upperdir=$disk/changes,workdir=$disk/work" overlay "$disk/root"
cd "$disk/root"
mount -t proc proc proc
mount --rbind /sys sys
mount --rbind /dev dev
mount -t tmpfs -o mode=1777 tmpfs dev/shm
mount -t tmpfs -o mode=755 tmpfs run
mkdir -p run/sshd srv/runs
install -m 600 "$top/host_key" run/host_key
printf '127.0.0.1 localhost\n127.0.1.1 %s\n' "$name" > etc/hosts  # as Debian does
[ "$name" = laptop ] || mount --bind "$top/shared" srv/runs

home=home/$user
if [ ! -d "$home" ]; then
    rm -rf tmp/ray
    cp -r etc/skel "$home" 2> /dev/null || mkdir -p "$home"
    sed -i "1i $user:*:0:0::/$home:/bin/bash" etc/passwd  # first, so that it is what root is called
    mkdir -m 700 "$home/.ssh"
    cp "$top/key.pub" "$home/.ssh/authorized_keys"
    [ "$name" != laptop ] || install -m 600 "$top/key" "$home/.ssh/id_ed25519"
fi
exec chroot . "$(command -v sshd || echo /usr/sbin/sshd)" -D -e -f /dev/null -h /run/host_key \
    -o ListenAddress=0.0.0.0 -o PermitRootLogin=prohibit-password -o PasswordAuthentication=no \
    -o AuthorizedKeysFile=.ssh/authorized_keys -o StrictModes=no -o UsePAM=no -o LogLevel=FATAL
