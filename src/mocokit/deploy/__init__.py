"""Putting a pretrained encoder to use."""
