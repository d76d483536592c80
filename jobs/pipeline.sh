#!/usr/bin/env bash
# Submits the whole chain: autoencoder -> cache (a job array) -> manifest -> diffusion -> samples -> metrics.
# Each job waits for the one before it to succeed (afterok); all of them belong to runs/NAME/. Prints the job ids.
#
#   jobs/pipeline.sh NAME
#   DATA="data=folder data.root=photos data.resolution=256" AUTOENCODER="experiment=kl_f8" \
#   DIFFUSION="net=ldm_f8_395m trainer=gpu steps=4e5 every=5000" SAMPLES="num=50000" METRICS="features=inception" \
#       jobs/pipeline.sh photos
#
# Overrides of one command each: AUTOENCODER, LATENTS, DIFFUSION, SAMPLES, METRICS; DATA of the three that read images.
# Options of sbatch: LDM_SBATCH in jobs/env.sh for all jobs; here TRAIN_SBATCH for the two trainings (say --nodes=8), and
# ARRAY, the number of tasks that cache (8).
# The same line again continues a chain that broke off: finished jobs skip their work, or repeat it in seconds.
set -euo pipefail
name=${1:?usage: jobs/pipeline.sh NAME (see the head of this file)}
env=${LDM_ENV:-jobs/env.sh}
[ -f "$env" ] || { echo "no $env here: submit from the root of the checkout" >&2; exit 1; }
source "$env"
jobs=$(dirname "${BASH_SOURCE[0]}")
words() { xargs -r printf '%s\n' <<<"$1"; } # of a line with quotes, one a line: a path may hold spaces
mapfile -t data < <(words "${DATA:-}")
mapfile -t autoencoder < <(words "${AUTOENCODER:-}")
mapfile -t caching < <(words "${LATENTS:-}")
mapfile -t diffusion < <(words "${DIFFUSION:-}")
mapfile -t samples < <(words "${SAMPLES:-}")
mapfile -t metrics < <(words "${METRICS:-}")

submit() { # submit WHAT AFTER SBATCH-OPTIONS SCRIPT OVERRIDES...
    local what=$1 after=$2 id
    shift 2
    id=$(sbatch --parsable --kill-on-invalid-dep=yes ${after:+--dependency="afterok:$after"} \
        "${LDM_SBATCH[@]}" --comment="ldm $name: $what" "$@")
    printf '%-12s %s\n' "$what" "$id"
    last=$id
}

last=
submit autoencoder "" ${TRAIN_SBATCH:-} "$jobs/train_autoencoder.sbatch" \
    run="$name/autoencoder" "${data[@]}" "${autoencoder[@]}"
latents=(run="$name/latents" autoencoder="runs/$name/autoencoder" "${data[@]}" "${caching[@]}")
submit cache "$last" --array="0-$((${ARRAY:-8} - 1))" "$jobs/cache_latents.sbatch" "${latents[@]}"
submit manifest "$last" --array=0-0 "$jobs/cache_latents.sbatch" "${latents[@]}"
submit diffusion "$last" ${TRAIN_SBATCH:-} "$jobs/train_diffusion.sbatch" \
    run="$name/diffusion" latents="runs/$name/latents" "${diffusion[@]}"
submit samples "$last" "$jobs/sample.sbatch" run="$name/samples" model="runs/$name/diffusion" "${samples[@]}"
submit metrics "$last" "$jobs/evaluate.sbatch" run="$name/metrics" samples="runs/$name/samples" "${data[@]}" "${metrics[@]}"
