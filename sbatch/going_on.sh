# shellcheck shell=bash
# Sourced by ranks.sh and local.sh: how a run that is preempted, or that its time limit ends, stops
# with a checkpoint, and how Slurm runs the job again. train.sh and local.sh give `--resume auto`, so
# that the next run goes on where this one stopped; predict.sh and partition.sh keep what they
# have finished.

# What the run tells this script stands in files beside this name:
#   (nothing)   why it failed: one line of the first rank that did
#   .running    `HOST PID` of rank 0's watcher, from the start of all ranks to their good end
#   .ended      all ranks have ended well
#   .progress   the run has a later checkpoint than it went on from
#   .stopped    why it stopped early, with a checkpoint
#   .on-HOST    locked as long as a rank, its watcher or what sweeps after them lives on that host
notes=$DISTSAGE_LOGS/job-${SLURM_JOB_ID:?}
export DISTSAGE_FAILURE_NOTE=$notes/failure
# The directory gets another name first, so that a watcher which speaks only now leaves nothing.
forget_notes() {
  [[ -d $notes ]] || return 0
  mv "$notes" "$notes.over"
  rm -rf "$notes.over"
}
forget_notes
mkdir "$notes"

# A run stops by itself when its time is nearly over, where no signal tells it. Slurm is asked once.
if [[ -z ${SLURM_JOB_END_TIME:-} ]]; then
  end_time=$(squeue -h -j "$SLURM_JOB_ID" -o %e 2>/dev/null) || true
  [[ ! $end_time =~ ^[0-9]{4}- ]] || SLURM_JOB_END_TIME=$(date -d "$end_time" +%s)
fi
export SLURM_JOB_END_TIME=${SLURM_JOB_END_TIME:-}

# ask_to_stop PID: have the run stop at its next step, once it has come up. PID is the launcher, or
# the run itself, and passes the signal on where rank 0 is on another host.
ask_to_stop() {
  local host='' watcher=''
  until [[ -e $DISTSAGE_FAILURE_NOTE.running ]]; do
    sleep 1
    kill -0 "$1" || return 0
  done
  read -r host watcher <"$DISTSAGE_FAILURE_NOTE.running" || true
  if [[ $host != "$(hostname)" ]]; then watcher=$1; fi
  kill -USR2 "$watcher"
}

# wait_for PID: wait for the run to end; `status` is its exit status. SIGUSR1 and SIGUSR2 (sbatch
# --signal) ask it to stop. So does SIGTERM (preemption, scancel), but then the run has a few seconds
# only; `ended_by` names the signal, and `asked` says whether one of the others has come.
wait_for() {
  ended_by='' asked=''
  # shellcheck disable=SC2064 # the process is known now
  trap "asked=yes; ask_to_stop $1 2>/dev/null &" USR1 USR2
  # shellcheck disable=SC2064
  trap "ended_by=SIGTERM; { ask_to_stop $1 & sleep 5; kill -TERM $1; } 2>/dev/null &" TERM
  while true; do
    status=0
    { wait "$1" || status=$?; } 2>/dev/null # a trapped signal ends it early
    kill -0 "$1" 2>/dev/null || break
  done
}

# wait_for_watchers: they put their hosts in order. When the launcher was killed they notice a moment
# later, and Slurm would kill them with the end of this script. Where a shared file system keeps locks
# to each host, this waits for those on this one.
wait_for_watchers() {
  local lock until=$((SECONDS + 10))
  for lock in "$DISTSAGE_FAILURE_NOTE".on-*; do
    [[ ! -e $lock ]] || flock -x -w "$((until > SECONDS ? until - SECONDS : 0))" "$lock" true || true
  done
}

# Whether Slurm has preempted the job, but leaves it some time.
preempted() {
  [[ $(scontrol show job -o "$SLURM_JOB_ID" 2>/dev/null) =~ PreemptTime=[0-9] ]]
}

# requeue WHY: have Slurm run the job again, and end. Tasks of an array have numbers of their own.
requeue() {
  local job=$SLURM_JOB_ID
  [[ -z ${SLURM_ARRAY_JOB_ID:-} ]] || job=${SLURM_ARRAY_JOB_ID}_$SLURM_ARRAY_TASK_ID
  if scontrol requeue "$job" 2>/dev/null; then
    say "$1: job $job is queued again and goes on from its last checkpoint"
    sleep 60 # Slurm ends this script
  fi
  say "$1, but Slurm does not queue job $job again; submit it again with the same --run-dir"
}

# end_or_go_on STATUS CAUSE: the last thing that a script does. CAUSE says why the run failed, if it is
# known. A preempted run goes on without limit; one that its time limit or a lost host has ended, as
# long as it got on. A host that was lost may come back before all others reach it.
end_or_go_on() {
  local status=$1 cause=$2 stopped='' got_on='' came_up='' restarts=${SLURM_RESTART_COUNT:-0}
  [[ ! -e $DISTSAGE_FAILURE_NOTE.stopped ]] || stopped=$(<"$DISTSAGE_FAILURE_NOTE.stopped")
  [[ ! -e $DISTSAGE_FAILURE_NOTE.progress ]] || got_on=yes
  [[ ! -e $DISTSAGE_FAILURE_NOTE.running ]] || came_up=yes
  forget_notes
  # Slurm also sends the SIGTERM of a preemption to every process on the other hosts, and the
  # launcher fails when its daemons there end. So any end but a good one counts.
  if { [[ $ended_by || $stopped ]] || ((status != 0)); } && preempted; then
    requeue "the job is preempted"
    status=143
  elif [[ $ended_by ]]; then
    say "ended by $ended_by (scancel, or the time limit)"
    status=143
  elif [[ $stopped && ! $asked && $stopped != *"time limit"* ]]; then
    say "${cause:-the run has stopped early, because $stopped}" # a rank was told, by somebody else
    status=143
  elif [[ $stopped && $got_on ]]; then
    requeue "the run has stopped early, because $stopped"
    status=143
  elif [[ $stopped ]]; then
    say "the run has stopped early, because $stopped, and had not got on since its start: it is not" \
      "queued again; ask for more --time"
    status=143
  elif [[ $cause == *"its host is lost"* ]] && [[ $got_on || $restarts -lt 3 ]]; then
    requeue "$cause" # Slurm would do it if it had seen first that the host is lost
  elif [[ ! $came_up ]] && ((status > 128 && restarts > 0 && restarts < 3)); then
    requeue "$cause"
  elif [[ $cause ]]; then
    say "$cause"
  fi
  exit "$status"
}
