"""From folders, archives and tables to batches of crops."""
