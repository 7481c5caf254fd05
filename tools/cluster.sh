#!/usr/bin/env bash
# A real Slurm on this one machine, to throw away: munged, slurmctld and as many slurmd as wanted, with a node's shape and the
# partitions of LUMI-G. It needs no systemd, no cgroups, no root, and touches nothing outside its own directory.
#     tools/cluster.sh up [NODES]        start it (3 nodes) and wait until every node is idle
#     tools/cluster.sh down              end it and all its jobs; logs stay until the next `up`
#     tools/cluster.sh kill-node NAME    a node dies with everything on it, as in a crash
#     tools/cluster.sh start-node NAME   and comes back
#     tools/cluster.sh stop-controller   Slurm cannot be reached; jobs that run go on
#     tools/cluster.sh start-controller  it can be again, and knows what it knew
#     tools/cluster.sh env               the line that makes sbatch, squeue and the others talk to this cluster
#     tools/cluster.sh status            what runs; exit code 1 where nothing does
# PORO_CLUSTER_DIR (/tmp/poro-cluster-UID) and PORO_CLUSTER_PORT (16800; the nodes have the ports after it) tell clusters apart.
#
# PORO_CLUSTER_MODE is `ns` for root with CAP_SYS_ADMIN: each node has its own processes, hostname and /dev/shm, and its name
# resolves on all nodes. Else it is `plain`: all daemons side by side, and nodes are named by their loopback addresses, so that
# MASTER_ADDR=$(scontrol show hostnames | head -1) works without a resolver. Real cores and memory are not counted in either: nodes
# of 56 cores are oversubscribed, CPU masks are parsed and not applied, GPUs are /dev/null.
#
# What it cannot be: GPUs, network cards, a parallel file system, sacct, LUMI's limits by user (two jobs on dev-g), memory limits.
set -euo pipefail
PATH=$PATH:/usr/sbin:/sbin

directory=${PORO_CLUSTER_DIR:-/tmp/poro-cluster-$UID}
port=${PORO_CLUSTER_PORT:-16800}
export SLURM_CONF=$directory/slurm.conf

fail() { echo "error: $1" >&2; exit 1; }

# Sockets end at 108 bytes, and slurmstepd's are the directory, /spool/NODE/NODE_JOB.STEP; slurm.conf knows no quotes.
[[ $directory =~ ^/[A-Za-z0-9._/-]+$ && ${#directory} -le 60 ]] ||
  fail "PORO_CLUSTER_DIR ($directory) must be an absolute path of at most 60 plain characters"
[[ $port =~ ^[0-9]+$ && $port -ge 1024 && $port -le 65000 ]] || fail "PORO_CLUSTER_PORT ($port) must be a port from 1024 to 65000"

choose_mode() {
  if [ -n "${PORO_CLUSTER_MODE:-}" ]; then
    [[ $PORO_CLUSTER_MODE =~ ^(ns|plain)$ ]] || fail "PORO_CLUSTER_MODE ($PORO_CLUSTER_MODE) is ns or plain"
    echo "$PORO_CLUSTER_MODE"
  elif [ "$UID" = 0 ] && unshare --fork --pid --mount --uts --ipc true 2>/dev/null; then
    echo ns
  else
    echo plain
  fi
}

node_name() { if [ "$1" = ns ]; then printf 'nid%06d\n' $((5000 + $2)); else echo "127.0.1.$2"; fi; }

# A process of this cluster: its command line names the directory. A number in a stale file may be anybody's by now, and a zombie,
# which a container's first process may never reap, has no command line.
ours() {
  local line
  [ -s "$1" ] || return 1
  line=$({ tr '\0' ' ' <"/proc/$(cat "$1")/cmdline"; } 2>/dev/null) || return 1
  [[ $line == *"$directory/"* ]]
}

# Daemons stay in the foreground of their own session, so that their numbers are known; nothing of the caller stays open in them.
start() {  # NAME COMMAND...
  local name=$1
  shift
  setsid "$@" </dev/null >>"$directory/log/$name.out" 2>&1 3>&- 4>&- 5>&- 6>&- 7>&- 8>&- 9>&- &
  echo $! >"$directory/run/$name.pid"
  # From here on one that is not `ours` has ended, rather than not begun.
  wait_until 20 ours "$directory/run/$name.pid" || true
}

wait_until() {  # TENTHS COMMAND...
  local tenths=$1
  shift
  while ! "$@"; do
    [ $((tenths -= 1)) -gt 0 ] || return 1
    sleep 0.1
  done
}

gone() { ! ours "$1"; }

end() {  # NAME
  local file=$directory/run/$1.pid
  if ours "$file"; then
    kill "$(cat "$file")" 2>/dev/null || true
    wait_until 100 gone "$file" || kill -9 "$(cat "$file")" 2>/dev/null || true
    wait_until 50 gone "$file" || fail "$1 does not end"
  fi
  rm -f "$file"
}

write_files() {  # MODE NODES
  local i names=()
  for i in $(seq "$2"); do names+=("$(node_name "$1" "$i")"); done
  mkdir -p "$directory"
  chmod 755 "$directory"
  mkdir "$directory"/{state,log,run,spool,dev}
  echo "$1" >"$directory/mode"
  printf '%s\n' "${names[@]}" >"$directory/nodes"
  { cat /etc/hosts; for i in $(seq "$2"); do echo "127.0.1.$i ${names[i - 1]}"; done; } >"$directory/hosts"
  (umask 077; head -c 128 /dev/urandom >"$directory/munge.key")
  # One link to /dev/null a GPU: `gpu` by count alone is ignored in silence, and one file eight times is refused. The flag makes
  # Slurm set ROCR_VISIBLE_DEVICES, as on LUMI.
  for i in {0..7}; do ln -s /dev/null "$directory/dev/gpu$i"; done
  echo "Name=gpu Type=mi250 File=$directory/dev/gpu[0-7] Flags=amd_gpu_env" >"$directory/gres.conf"
  # LUMI's refusal of a job without an account, which needs no database this way; 2050 is ESLURM_ACCOUNTING_POLICY.
  cat >"$directory/job_submit.lua" <<'LUA'
function slurm_job_submit(job, partitions, user)
  if job.account == nil or job.account == "" then
    slurm.log_user("--account is missing")
    return 2050
  end
  return slurm.SUCCESS
end
function slurm_job_modify(job, record, partitions, user) return slurm.SUCCESS end
LUA
  write_slurm_conf "${names[@]}"
}

write_slurm_conf() {  # NODE...
  local i=0 name
  {
    cat <<CONF
ClusterName=poro
SlurmctldHost=localhost
SlurmUser=$(id -un)
SlurmdUser=$(id -un)
SlurmctldPort=$port
# slurmctld listens on localhost alone. NoInAddrAny would do that for all daemons, and srun then never starts a task.
CommunicationParameters=NoCtldInAddrAny
AuthType=auth/munge
# A requeued job may start again once its credential has expired: 120 s by default, and on LUMI.
AuthInfo=socket=$directory/run/munge.sock,cred_expire=5
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
StateSaveLocation=$directory/state
SlurmdSpoolDir=$directory/spool/%n
SlurmctldPidFile=$directory/run/slurmctld.own
SlurmdPidFile=$directory/run/slurmd-%n.own
SlurmctldLogFile=$directory/log/slurmctld.log
SlurmdLogFile=$directory/log/slurmd-%n.log
MailProg=/bin/true
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=5,bf_interval=2,batch_sched_delay=0,sched_min_interval=0
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
EnforcePartLimits=ALL
JobSubmitPlugins=lua
GresTypes=gpu
SlurmdParameters=config_overrides
ReturnToService=2
# A killed node's job was requeued, for SlurmdTimeout and MessageTimeout of 15 and 10 s, after 30 s; for 5 and 10 after 29; for 10
# and 5 after 19; 5 and 5: 16; 5 and 3: 14; 3 and 3: 12; 5 and 2: 10. With 5 and 3, eight busy tasks and the daemons on one core
# lost no node in 24 s, and a client gives up on a stopped controller after 2 to 4 s.
SlurmdTimeout=5
MessageTimeout=3
# Time limits and their --signal are looked at every 30 s from slurmctld's start, which nothing here changes: a job of one minute
# ended after 88 s, and its signal comes up to 30 s early. Where a job has started, \`scontrol update JobId=N EndTime=now+8\` spares
# the minute: the next look ends it, 31 s after that when it came early in the 30.
KillWait=5
MinJobAge=300
# A node of LUMI-G as its Slurm shows it: 56 of 64 cores, 480 GiB, the eight dies of four MI250X.
NodeName=DEFAULT Sockets=1 CoresPerSocket=56 ThreadsPerCore=1 RealMemory=491520 Gres=gpu:mi250:8 State=UNKNOWN
CONF
    for name in "$@"; do
      i=$((i + 1))
      echo "NodeName=$name NodeHostname=localhost NodeAddr=127.0.1.$i Port=$((port + i))"
    done
    cat <<CONF
PartitionName=dev-g Nodes=ALL MaxNodes=32 MaxTime=3:00:00 DefaultTime=10 State=UP
PartitionName=small-g Nodes=ALL MaxNodes=4 MaxTime=3-00:00:00 DefaultTime=10 State=UP
PartitionName=standard-g Nodes=ALL MaxNodes=1024 MaxTime=2-00:00:00 DefaultTime=10 OverSubscribe=EXCLUSIVE State=UP
PartitionName=small Nodes=ALL MaxNodes=4 MaxTime=3-00:00:00 DefaultTime=10 State=UP
CONF
  } >"$SLURM_CONF"
}

start_node() {  # NAME
  local own
  if [ "$(cat "$directory/mode")" = plain ]; then
    start "node-$1" env PORO_CLUSTER_NODE="$directory/$1" slurmd -D -f "$SLURM_CONF" -N "$1"
    return
  fi
  # The inner shell is process 1 of its node and reaps what jobs leave; with it all the node's processes die. Their numbers repeat
  # between nodes: names made of them in a shared /dev/shm would be one file.
  # shellcheck disable=SC2016
  own='hostname "$1"; mount --bind "$2hosts" /etc/hosts; mount -t tmpfs tmpfs /dev/shm; slurmd -D -f "$2slurm.conf" -N "$1"; exit'
  start "node-$1" unshare --fork --pid --mount --uts --ipc --mount-proc --kill-child bash -c "$own" node "$1" "$directory/"
}

# Without a process namespace a node's processes are known by their environment: slurmd and slurmstepd by what start_node gave them,
# jobs by what Slurm gives them. Those of others cannot be read, which is no error here.
processes_of() {  # NAME
  {
    grep -lzxF "PORO_CLUSTER_NODE=$directory/$1" /proc/[0-9]*/environ || true
    grep -lzxF "SLURMD_NODENAME=$1" /proc/[0-9]*/environ | xargs -r grep -lzxF "SLURM_CONF=$SLURM_CONF" || true
  } 2>/dev/null | cut -d/ -f3
}

# Again until there are none: more may be born while they are looked for.
kill_processes_of() {  # NAME
  local found
  for _ in {1..100}; do
    mapfile -t found < <(processes_of "$1")
    [ ${#found[@]} -gt 0 ] || return 0
    kill -9 "${found[@]}" 2>/dev/null || true
    sleep 0.02
  done
}

kill_node() {  # NAME
  local file=$directory/run/node-$1.pid
  if ours "$file"; then kill -9 "$(cat "$file")" 2>/dev/null || true; fi
  [ "$(cat "$directory/mode")" = ns ] || kill_processes_of "$1"
  wait_until 50 gone "$file" || fail "node $1 does not end"
  rm -f "$file"
}

start_controller() {  # OPTION...
  start slurmctld slurmctld -D "$@" -f "$SLURM_CONF"
  { wait_until 200 controller_settled && controller_runs; } ||
    fail "slurmctld does not answer: $(grep -hE 'fatal|error' "$directory/log/slurmctld.log" | tail -n 1)"
}

controller_runs() { ours "$directory/run/slurmctld.pid"; }
controller_settled() { ! controller_runs || scontrol ping 2>/dev/null | grep -q 'is UP'; }

all_idle() {  # NODES
  [ "$(sinfo -h -N -p small -t idle -o %N 2>/dev/null | wc -l)" = "$1" ]
}

node_answers() {  # NAME
  local state
  state=$(scontrol show node -o "$1" 2>/dev/null | grep -o ' State=[^ ]*') && [[ $state != *DOWN* && $state != *"*"* ]]
}

# Whatever stands in the run directory and lives.
living() {
  local file
  for file in "$directory"/run/*.pid; do
    if ours "$file"; then basename "$file" .pid; fi
  done
}

need_slurm() {
  local program missing=()
  for program in munged slurmctld slurmd sbatch scontrol; do
    command -v "$program" >/dev/null || missing+=("$program")
  done
  [ ${#missing[@]} = 0 ] || fail "not installed: ${missing[*]}; on Debian and Ubuntu
    apt-get update && apt-get install -y --no-install-recommends slurm-wlm munge"
}

# munged lives as long as the cluster; the controller may be away.
need_up() { ours "$directory/run/munged.pid" || fail "no cluster runs in $directory; tools/cluster.sh up"; }

need_node() {  # NAME
  need_up
  grep -qxF -- "${1:-no name}" "$directory/nodes" || fail "node '$1' is none of: $(xargs <"$directory/nodes")"
}

up() {  # NODES
  local living mode name
  [[ $1 =~ ^[0-9]+$ && $1 -ge 1 && $1 -le 99 ]] || fail "NODES ($1) must be from 1 to 99"
  need_slurm
  if controller_runs; then
    echo "is up in $directory with $(wc -l <"$directory/nodes") nodes"
    return
  fi
  living=$(living | xargs)
  [ -z "$living" ] || fail "no slurmctld runs in $directory, but: $living; tools/cluster.sh start-controller, or down"
  # What a dead cluster left is of no use, its jobs included; anything else is not ours to remove.
  if [ -e "$directory" ]; then
    if [ ! -O "$directory" ] || { [ ! -f "$directory/mode" ] && [ -n "$(ls -A "$directory")" ]; }; then
      fail "$directory is not a cluster's directory of yours; set PORO_CLUSTER_DIR"
    fi
    rm -rf "$directory"
  fi
  mode=$(choose_mode)
  trap down EXIT  # half a cluster is none
  write_files "$mode" "$1"
  start munged munged --foreground --key-file="$directory/munge.key" --socket="$directory/run/munge.sock" \
    --pid-file="$directory/run/munged.own" --log-file="$directory/log/munged.log" --seed-file="$directory/run/munged.seed"
  wait_until 100 test -S "$directory/run/munge.sock" || fail "munged does not start; see $directory/log/munged.log"
  start_controller -i
  while read -r name; do start_node "$name"; done <"$directory/nodes"
  wait_until 200 all_idle "$1" || { sinfo -N >&2; fail "nodes do not register; see $directory/log"; }
  trap - EXIT
}

down() {
  local name
  [ -f "$directory/mode" ] || return 0
  # The controller first: it would take the nodes' end for a failure and requeue their jobs.
  end slurmctld
  while read -r name; do kill_node "$name"; done <"$directory/nodes"
  end munged
}

case ${1:-} in
  up) up "${2:-3}" ;;
  down) down ;;
  kill-node)
    need_node "${2:-}"
    kill_node "$2"
    ;;
  start-node)
    need_node "${2:-}"
    ! ours "$directory/run/node-$2.pid" || fail "node $2 runs"
    start_node "$2"
    ! controller_runs || wait_until 200 node_answers "$2" || fail "node $2 does not register; see $directory/log"
    ;;
  stop-controller)
    controller_runs || fail "slurmctld does not run"
    end slurmctld
    ;;
  start-controller)
    need_up
    ! controller_runs || fail "slurmctld runs"
    start_controller
    ;;
  env) echo "export SLURM_CONF=$SLURM_CONF" ;;
  status)
    need_up
    controller_runs || fail "slurmctld is stopped; tools/cluster.sh start-controller"
    sinfo -N -p small -o '%N %T %c cores %m MB %G'
    squeue
    ;;
  *)
    sed -n '2,/^set /s/^# \{0,1\}//p' "$0" >&2
    exit 2
    ;;
esac
