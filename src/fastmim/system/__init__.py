"""Files, processes and hardware."""
