"""Image augmentation: crops, policies and random erasing."""
