"""Images from sources to batches; latents from shards of the cache to batches."""
