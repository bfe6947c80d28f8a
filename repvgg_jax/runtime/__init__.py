"""Runtime environment: devices, compilation, device mesh, processes, signals and files."""
