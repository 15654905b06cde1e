"""What goes to the Hub beside a model: its decoding method and its card."""
