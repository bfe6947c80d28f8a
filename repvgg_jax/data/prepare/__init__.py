"""Preparation of data sets from their official archives."""
