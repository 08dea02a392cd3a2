"""The page on which the thresholds of a store are cut by hand: one file, or served on loopback."""
