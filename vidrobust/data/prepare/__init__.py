"""Make copies of a data set (resized, corrupted, or as texture twins), and lists."""
