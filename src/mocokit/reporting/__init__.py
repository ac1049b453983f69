"""What a report on a run's images is made of, and the page that shows it."""
