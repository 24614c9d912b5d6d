"""Where a guest keeps secrets, and whether it has them anywhere else."""
