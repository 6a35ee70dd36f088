#!/usr/bin/env bash
# Runs a small grid over profiles/slurm on a SLURM of its own: this machine as controller and as its one node.
# Asserts that every job of the grid went through SLURM, and that the table of results is that of the same runs carried out here.
#
#   tests/slurm.sh          as root on Debian; installs slurm-wlm and munge where they are missing
#
# SLURM's configuration, state and logs lie in a temporary folder, to which links in /etc/slurm point as long as it runs;
# munge's key is the system's own. Exit status 77: this machine cannot run it.
set -euo pipefail
cd "$(dirname "$0")/.."

if [[ $(id -u) != 0 ]]; then
  echo "tests/slurm.sh needs root, to install and start SLURM" >&2
  exit 77
fi
if ! command -v slurmctld >/dev/null || ! command -v munged >/dev/null; then
  command -v apt-get >/dev/null || { echo "SLURM is not installed, and there is no apt-get" >&2; exit 77; }
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends slurm-wlm munge >/dev/null
fi

if [[ -e /etc/slurm/slurm.conf ]]; then
  echo "this machine has a SLURM already" >&2
  exit 77
fi

work=$(mktemp -d)
chmod 755 "$work"
pids=()
finish() {
  status=$?
  # jobs first, then the daemons that this script started
  scancel --user=root >/dev/null 2>&1 || true
  for pid in "${pids[@]}"; do kill "$pid" 2>/dev/null || true; done
  for pid in "${pids[@]}"; do wait "$pid" 2>/dev/null || true; done
  if [[ $status != 0 ]]; then
    tail -n 30 "$work"/*.log "$work"/runs/few/logs/*.log >&2 2>/dev/null || true
  fi
  rm -rf "$work" /etc/slurm/slurm.conf /etc/slurm/cgroup.conf
  exit "$status"
}
trap finish EXIT

# munge
mkdir -p /run/munge /var/lib/munge /var/log/munge
[[ -s /etc/munge/munge.key ]] || { head -c 1024 /dev/urandom > /etc/munge/munge.key; }
chown -R munge: /etc/munge /run/munge /var/lib/munge /var/log/munge
chmod 400 /etc/munge/munge.key
if ! munge -n >/dev/null 2>&1; then
  runuser -u munge -- /usr/sbin/munged --foreground > "$work/munged.log" 2>&1 &
  pids+=($!)
  for _ in $(seq 50); do munge -n >/dev/null 2>&1 && break; sleep 0.1; done
  munge -n >/dev/null
fi

# SLURM: jobs are followed by their process group and kept in no cgroup, so that it runs in a container
host=$(hostname -s)
mkdir -p "$work/state" "$work/spool"
cat > "$work/slurm.conf" <<CONF
ClusterName=tadlib
SlurmctldHost=$host(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
SlurmctldPort=16817
SlurmdPort=16818
StateSaveLocation=$work/state
SlurmdSpoolDir=$work/spool
SlurmctldPidFile=$work/slurmctld.pid
SlurmdPidFile=$work/slurmd.pid
SlurmctldLogFile=$work/slurmctld.log
SlurmdLogFile=$work/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/filetxt
JobCompLoc=$work/completed.txt
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SchedulerParameters=batch_sched_delay=0,sched_interval=1
MinJobAge=300
NodeName=$host NodeAddr=127.0.0.1 CPUs=$(nproc --all) RealMemory=4000 State=UNKNOWN
PartitionName=test Nodes=$host Default=YES MaxTime=INFINITE State=UP
CONF
echo "CgroupPlugin=cgroup/v1" > "$work/cgroup.conf" # is loaded in any case, and then not used
ln -s "$work/slurm.conf" "$work/cgroup.conf" /etc/slurm/
slurmctld -D > "$work/slurmctld.out.log" 2>&1 &
pids+=($!)
slurmd -D > "$work/slurmd.out.log" 2>&1 &
pids+=($!)
for _ in $(seq 100); do [[ $(sinfo --noheader --format=%T 2>/dev/null) == idle ]] && break; sleep 0.2; done
[[ $(sinfo --noheader --format=%T) == idle ]]
echo "SLURM $(sinfo --version | cut -d' ' -f2) is up on $host"

# without accounting only squeue knows what became of jobs; the plugin asks every 40 s, and less often as time goes by,
# unless told otherwise
python=.venv/bin/python
export PYTHONPATH=$PWD${PYTHONPATH:+:$PYTHONPATH}
$python -m workflow tests/grids/few.yml --profile slurm --out "$work/runs" --device cpu \
  --slurm-status-command squeue --slurm-init-seconds-before-status-checks 2 --seconds-between-status-checks 2 \
  --default-resources mem_mb=1000 runtime=10

$python - "$work" <<'PYTHON'
import sys
from pathlib import Path

sys.path.insert(0, "tests")
import pandas as pd
from kill_grid import MEASURED, finished, table

from tadlib import pipeline
from workflow.load import load_grid

work = Path(sys.argv[1])
runs = load_grid("tests/grids/few.yml", out=str(work / "local"), device="cpu").runs
local = pipeline.result_table([pd.DataFrame([pipeline.run(run.config) for run in runs])]).drop(columns=MEASURED)
completed = [line for line in (work / "completed.txt").read_text().splitlines() if "JobState=COMPLETED" in line]
done = finished(work / "runs", "few")
assert len(done) == len(completed) > 0, f"{len(done)} jobs of the grid, {len(completed)} jobs of SLURM"
pd.testing.assert_frame_equal(table(work / "runs", "few"), local, check_dtype=False)
print(f"{len(done)} jobs, all through SLURM; the table equals that of the same runs in one local process")
PYTHON
