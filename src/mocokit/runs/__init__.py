"""What a run is of: what was asked for, its images, who tests, what it starts or goes on from, what is measured."""
