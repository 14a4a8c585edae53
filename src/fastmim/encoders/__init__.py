"""Any backbone as a map of features."""
