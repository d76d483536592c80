"""Scores of images and latents: tensors in (images as uint8 [B, 3, H, W]), plain floats out."""
