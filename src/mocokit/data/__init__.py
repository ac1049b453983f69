"""From what the user named to augmented batches of pixels; sources, decoding and store do not need torch."""
