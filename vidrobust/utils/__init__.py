"""Small tools below everything else: errors, files, logging, ranks."""
