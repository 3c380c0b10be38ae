"""What the backends are asked: one frozen dataclass per operator."""
