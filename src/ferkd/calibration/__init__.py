"""FerKD's regions and how far a teacher's confidence can be trusted."""
