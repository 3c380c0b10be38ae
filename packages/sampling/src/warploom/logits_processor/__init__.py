"""LogitsPipe."""
