# The steps of a job, after the lines that launch/submit.py puts before. Variables: run, start, nodes, each, part, recipe.
# With the argument `chain`, the next job of the chain resumes the run.

say() { echo "job $SLURM_JOB_ID: $*"; }
newest() { find "$run/checkpoints" -maxdepth 1 -name 'step-*' 2>/dev/null | sort | tail -n 1; }
end() {  # Ends the job; jobs of a chain that wait for it have nothing left to do.
  if [[ $chain ]]; then scancel --name="$SLURM_JOB_NAME" --state=PENDING --user="$(id -un)"; fi
  exit "$1"
}

chain=${1-}
trap : TERM  # so that the lines after srun are reached when Slurm ends the job
if [[ -e $run/summary.json ]]; then
  say "finished already: $run/summary.json"
  end 0
fi
cd "$start" || end 2

if ((nodes > 1)); then
  token=$(mktemp "$run/.seen-by-all.XXXXXX") || end 2
  # shellcheck disable=SC2016
  srun --overlap "${each[@]}" bash -c '
    for _ in {1..10}; do [[ -e $0 ]] && exit; sleep 1; done
    echo "error: output_dir: node $SLURMD_NODENAME does not see what node $2 has written to $1;" \
      "all nodes must have it in common" >&2
    exit 2' "$token" "$run" "${SLURMD_NODENAME-}"
  seen=$?
  rm -f "$token"
  ((seen == 0)) || end "$seen"
fi

host=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)
port=$((20000 + SLURM_JOB_ID % 10000))
before=$(newest)
say "start ${SLURM_RESTART_COUNT:-0} on $SLURM_JOB_NODELIST, from ${before:-the beginning}"
# shellcheck disable=SC2016
srun "${each[@]}" "${container[@]}" bash -c 'exec "$0" "$1" --node "$SLURM_NODEID" "${@:2}"' \
  "${part[@]}" --host "$host" --port "$port" -- --config "$recipe"
code=$?
if ((code != 75)); then
  say "ended with $code"
  end "$code"
fi

# The run was asked to stop and has saved; it can be resumed. Where Slurm itself ends the job, Slurm decides.
state=$(scontrol show job --oneliner "$SLURM_JOB_ID" | grep -o 'JobState=[A-Z_]*')
if [[ $chain ]]; then
  say "stopped; the next job of the chain, or sbatch $run/job.sbatch, resumes it"
  exit 75
elif [[ $state != JobState=RUNNING ]]; then
  say "stopped while Slurm ended it ($state); unless Slurm requeues it, sbatch $run/job.sbatch resumes it"
  exit 75
fi
stops=0
if [[ $(newest) == "$before" ]]; then
  [[ -r $run/.stops ]] && read -r job stops <"$run/.stops"
  [[ ${job-} == "$SLURM_JOB_ID" ]] || stops=0
  ((++stops))
fi
echo "$SLURM_JOB_ID $stops" >"$run/.stops"
if ((stops == 3)); then
  say "error: stopped $stops times in a row before a checkpoint was saved; give the job more --time"
  exit 1
fi
if scontrol requeue "$SLURM_JOB_ID"; then
  say "stopped; requeued"
else
  say "stopped, and Slurm does not requeue it; sbatch $run/job.sbatch resumes it"
fi
exit 75
