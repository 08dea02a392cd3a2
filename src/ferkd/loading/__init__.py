"""From images and labels to batches: order, crops, steps, mixing."""
