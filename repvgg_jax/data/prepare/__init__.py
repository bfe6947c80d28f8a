"""Preparation of data sets from official archives."""
