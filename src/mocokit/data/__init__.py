"""From what the user named to batches of pixels: find the images, decode each once, view them augmented.

This half (sources, decode, store) needs no torch, which comes in with the views.
"""
