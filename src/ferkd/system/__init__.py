"""What every room stands on: errors, files, storage, memory, devices, threads, interruption."""
