"""Measurements that write the tables in `docs/`."""
