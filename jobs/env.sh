# The one file that is written for a site: jobs/*.sbatch and jobs/pipeline.sh read it (or the file that LDM_ENV names).
# Submit from the root of the checkout, after `make setup`.
export PATH="$PWD/.venv/bin:$PATH"

# Options of every sbatch that pipeline.sh calls, such as (--partition=gpu --account=lab). An sbatch that you type reads
# SBATCH_PARTITION, SBATCH_ACCOUNT and the like from your shell.
LDM_SBATCH=()

# What your cluster needs, for example:
# module load cuda
# export NCCL_SOCKET_IFNAME=ib0
# export WANDB_MODE=online
