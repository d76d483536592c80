"""Images in, latents cached, latents out."""
