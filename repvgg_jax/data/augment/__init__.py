"""Augmentation of images: crops, policies and random erasing."""
