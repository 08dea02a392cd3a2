"""From a folder of photographs to a small model in use."""
