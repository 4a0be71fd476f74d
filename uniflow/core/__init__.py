"""What every other room stands on: parts, specs, files, processes. No model is in here."""
