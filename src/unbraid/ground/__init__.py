"""What every room needs, written once: errors, files, random streams, progress, fan-out, manifests."""
