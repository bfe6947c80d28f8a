"""Launchers run the jobs of a sweep: on this machine, on SLURM, or on Kubernetes."""
