"""Benchmarks: what a part costs beside a baseline, measured side by side in one run."""
