"""The mathematics of masked image modelling."""
