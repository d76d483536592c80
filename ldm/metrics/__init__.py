"""Numbers for images: uint8 [B, 3, H, W] in, plain floats out."""
