"""Models from elsewhere and for elsewhere: CompVis and Stable Diffusion checkpoints, diffusers' folders."""
