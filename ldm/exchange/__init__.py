"""Reads models from the checkpoints of CompVis, Stable Diffusion and ADM; reads and writes diffusers' folders."""
