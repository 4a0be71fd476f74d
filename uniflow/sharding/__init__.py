"""Models spread over processes: FSDP2 (`--trainer.strategy fsdp2`), and checkpoints in pieces."""
