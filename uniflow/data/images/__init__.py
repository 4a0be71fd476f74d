"""Images from files: reading, cropping, folders, shards and batches of several sizes."""
