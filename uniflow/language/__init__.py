"""Language models behind visual features: prompts, projector, answers and their scores."""
