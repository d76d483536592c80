"""From classes to images: noise, a guided sampler, the decoder; and what `ldm.load` returns."""
