"""Methods of masked image modelling, one file each."""
