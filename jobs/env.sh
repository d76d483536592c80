# The one file that knows the site: jobs/*.sbatch and jobs/pipeline.sh read it (or the file that LDM_ENV names).
# Submit from the root of the checkout, after `make setup`.
export PATH="$PWD/.venv/bin:$PATH"

# Options of every sbatch that pipeline.sh calls, say (--partition=gpu --account=lab). A plain sbatch reads SBATCH_PARTITION,
# SBATCH_ACCOUNT and their like from your shell.
LDM_SBATCH=()

# What your cluster wants, say:
# module load cuda
# export NCCL_SOCKET_IFNAME=ib0
# export WANDB_MODE=online
