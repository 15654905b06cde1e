"""What makes a search faster without changing its lists: captured programs, and the choice of the drafter."""
