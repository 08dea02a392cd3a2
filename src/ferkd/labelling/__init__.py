"""The labelling pass and what checks it: maps, other boxes, verification, replay."""
