"""The FKD authors' label files, in and out."""
