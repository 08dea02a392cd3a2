"""Looking and comparing: suites, reports, inspection, demo, planning, benchmarks."""
