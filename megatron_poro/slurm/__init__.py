"""The Slurm array as the run: cluster profiles, the rendered script, what an element does, and what the queue and the run tell."""
