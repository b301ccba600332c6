"""Messages, progress bars and the terminal."""
