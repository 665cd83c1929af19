"""Where jobs run: Slurm, or the machine at hand. Both run the same scripts in the same order."""
