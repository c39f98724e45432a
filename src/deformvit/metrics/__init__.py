"""What models are measured by."""
