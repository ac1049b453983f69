"""One file per verb: options, one call, one result file."""
