"""The report on the results of sweeps."""
