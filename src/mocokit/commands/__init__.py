"""One file per verb: options, one call, one result file; and `inputs` and `results`, which they share."""
