"""The two LightningModules, their callbacks and the run: wiring and logging, no mathematics."""
