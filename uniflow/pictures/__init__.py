"""Drawing: sheets of images, galleries, curves."""
