"""What is shown with a lab: the demonstration and the benchmark."""
