"""Read frames of a video or an image by frame number."""
