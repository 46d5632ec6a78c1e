"""Random fire: requests and faults without pause, and every few minutes a breath."""
