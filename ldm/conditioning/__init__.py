"""What stage 2 is told besides the label: drawn from the latents in training, given in sampling."""
