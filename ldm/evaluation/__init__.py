"""What `ldm evaluate` says: sets of images, scores of samples and of models, which numbers may be compared."""
