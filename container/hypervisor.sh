#!/bin/bash
# A hypervisor in a container: libvirtd and the host worker, each started again when it ends.
#
# Guests are adopted by PID 1 and outlive both. They do not outlive the container: to stop it is to
# pull the host's plug.
set -euo pipefail

readonly libvirt_state=/var/lib/libvirt
readonly ready_file=${INNKEEPER_READY_FILE:?is not set}
readonly domain_type=${INNKEEPER_DOMAIN_TYPE:?is not set}
readonly migration_address=${INNKEEPER_MIGRATION_ADDRESS:?is not set}
declare -A pid_of=()
stopping=

say() { printf 'hypervisor: %s\n' "$*" >&2; }

# libvirt refuses to migrate between hosts of one UUID, and containers of one machine would all
# read the machine's.
host_uuid() {
    local file=$libvirt_state/host-uuid
    if [ ! -s "$file" ]; then
        cat /proc/sys/kernel/random/uuid >"$file.new"
        mv "$file.new" "$file"
    fi
    cat "$file"
}

own_address() {
    local address
    address=$(getent ahostsv4 "$migration_address" | awk 'NR == 1 { print $1 }')
    if [ -z "$address" ]; then
        say "INNKEEPER_MIGRATION_ADDRESS=$migration_address is not a name of this container"
        return 1
    fi
    printf '%s' "$address"
}

configure() {
    local address uuid
    address=$(own_address)
    uuid=$(host_uuid)
    mkdir -p /run/lock /run/user "$(dirname "$ready_file")" \
        "$libvirt_state"/{boot,images,qemu} /var/log/libvirt/qemu /var/cache/libvirt/qemu
    cat >/etc/libvirt/libvirtd.conf <<END
host_uuid = "$uuid"
listen_tls = 0
listen_tcp = 1
# The address is on a network that only hypervisors are on, and whoever reaches it is root here.
listen_addr = "$address"
tcp_port = "16509"
auth_tcp = "none"
auth_unix_rw = "none"
auth_unix_ro = "none"
unix_sock_rw_perms = "0700"
max_clients = 5000
max_workers = 60
prio_workers = 10
max_client_requests = 20
keepalive_interval = 5
keepalive_count = 3
log_outputs = "3:stderr"
END
    cat >/etc/libvirt/qemu.conf <<END
user = "root"
group = "root"
# Two libvirtd share one directory: neither may relabel or chown the other's files.
dynamic_ownership = 0
remember_owner = 0
security_driver = "none"
# The container is the guests' cgroup and their namespace.
cgroup_controllers = []
namespaces = []
# No virtlogd here.
stdio_handler = "file"
migration_address = "$address"
keepalive_interval = 5
keepalive_count = 3
END
}

start() {
    case $1 in
    libvirtd)
        libvirtd --listen &
        ;;
    worker)
        rm -f "$ready_file"
        python -m workers host &
        ;;
    esac
    pid_of[$1]=$!
}

# Also asks QEMU what it can do, so that the first guest need not wait for that.
await_libvirtd() {
    local deadline=$((SECONDS + 60))
    until virsh -q -c qemu:///system domcapabilities --virttype "$domain_type" >/dev/null 2>&1; do
        if [ -n "$stopping" ]; then return; fi
        if [ "$SECONDS" -ge "$deadline" ]; then
            say "libvirt offers no guests of type $domain_type; it says:"
            virsh -q -c qemu:///system domcapabilities --virttype "$domain_type" >&2 || true
            return 1
        fi
        sleep 0.2
    done
}

keep_running() {
    local role restarted
    while [ -z "$stopping" ]; do
        restarted=
        for role in libvirtd worker; do
            if [ -z "$stopping" ] && ! kill -0 "${pid_of[$role]}" 2>/dev/null; then
                say "$role ended; starting it again"
                sleep 1
                start "$role"
                restarted=yes
            fi
        done
        # bash does not wait for what ended during that sleep: look at everything once more.
        if [ -z "$restarted" ]; then wait -n "${pid_of[@]}" || true; fi
    done
}

# Ending the worker also ends a wait that began just after the signal.
on_signal() {
    stopping=yes
    if [ -n "${pid_of[worker]:-}" ]; then kill -TERM "${pid_of[worker]}" 2>/dev/null || true; fi
}

# The worker first: it finishes what it has in hand, and needs libvirtd for that.
stop() {
    local role
    for role in worker libvirtd; do
        if [ -n "${pid_of[$role]:-}" ]; then
            kill -TERM "${pid_of[$role]}" 2>/dev/null || true
            wait "${pid_of[$role]}" || true
        fi
    done
}

trap on_signal TERM INT
configure
start libvirtd
await_libvirtd
if [ -z "$stopping" ]; then start worker; fi
keep_running
say "stopping"
stop
