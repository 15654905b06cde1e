"""What is trained for SpecGR, and how."""
