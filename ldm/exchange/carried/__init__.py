"""Code that an export carries with it: for diffusers and torch, without ldm. Nothing here imports ldm, nor ldm it."""
