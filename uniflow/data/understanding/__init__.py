"""Data modules in the official layouts of understanding data sets."""
