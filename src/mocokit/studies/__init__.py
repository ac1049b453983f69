"""A study: many pretrainings on subsets of the images, and what they say together."""
