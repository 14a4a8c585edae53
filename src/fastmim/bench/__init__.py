"""Benchmarks (`fastmim bench`): ratios, measured side by side in one run."""
