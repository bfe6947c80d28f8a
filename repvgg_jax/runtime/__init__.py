"""The environment of a run: devices, compilation, mesh, processes, signals and files."""
